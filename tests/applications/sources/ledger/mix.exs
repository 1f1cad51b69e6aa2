defmodule Ledger.MixProject do
  use Mix.Project

  # LEDGER_SSL and LEDGER_ERTS: the four kinds of release that the tests want of it. Those with ssl boot a
  # second time, in the same process, once they have read config/runtime.exs.
  def project do
    [
      app: :ledger,
      version: "0.1.0",
      elixir: "~> 1.14",
      deps: [],
      releases: [
        ledger: [
          include_erts: System.get_env("LEDGER_ERTS") == "yes",
          include_executables_for: [:unix],
          reboot_system_after_config: System.get_env("LEDGER_SSL") == "yes",
          applications: if(System.get_env("LEDGER_SSL") == "yes", do: [ssl: :permanent], else: [])
        ]
      ]
    ]
  end

  def application, do: [extra_applications: [:logger], mod: {Ledger.Application, []}]
end
