import Config

config :ledger, site: System.get_env("LEDGER_SITE", "here")
