# Prints who comes and goes. The node has its name, its cookie and its carrier
# from distsec: no --name, no --sname, no --cookie, no Node.start.
spawn(fn ->
  :ok = :net_kernel.monitor_nodes(true)
  IO.puts("#{node()} sees #{inspect(Node.list())}")

  Stream.repeatedly(fn ->
    receive do
      {change, peer} -> IO.puts("#{change} #{peer}")
    end
  end)
  |> Stream.run()
end)
