#!/bin/sh
# As `gleam export erlang-shipment` writes it, as far as `run` goes.
set -eu

PACKAGE=greeter
BASE=$(dirname "$0")
COMMAND="${1-default}"

run() {
  exec erl \
    -pa "$BASE"/*/ebin \
    -eval "$PACKAGE@@main:run($PACKAGE)" \
    -noshell \
    -extra "$@"
}

case "$COMMAND" in
run)
  shift
  run "$@"
  ;;
*)
  echo "usage: entrypoint.sh run" >&2
  exit 1
  ;;
esac
