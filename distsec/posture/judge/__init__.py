"""A module for each subject: `judge(facts)` yields findings. Pure."""
