defmodule Ledger.Application do
  use Application

  def start(_type, _args) do
    children = [%{id: Ledger, start: {Agent, :start_link, [fn -> [] end, [name: Ledger]]}}]
    Supervisor.start_link(children, strategy: :one_for_one)
  end
end

defmodule Ledger do
  @moduledoc "Entries that every node of the cluster has."

  def add(entry) do
    for node <- [node() | Node.list()] do
      :ok = :erpc.call(node, Agent, :update, [Ledger, List, :insert_at, [0, entry]])
    end
    :ok
  end

  def entries, do: Agent.get(Ledger, & &1)
end
