#!/usr/bin/env bash
# Puts the broker beside Nchan, a plain axum server and a bare write loop, one core for the server and one for the load,
# and writes what came of it into docs/performance.md. As root on Debian it installs what is missing; elsewhere it says
# what that is. Arguments go to benches/compare.rs: --rounds N, --short, words that select.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'compare: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

packages=()
have redis-server || packages+=(redis-server)
have nginx || packages+=(nginx-light)
have taskset || packages+=(util-linux)
[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || packages+=(libnginx-mod-nchan)
if [ "${#packages[@]}" -gt 0 ]; then
  if ! have apt-get || [ "$(id -u)" != 0 ]; then
    say "programs are missing. On Debian run: sudo apt-get install --no-install-recommends ${packages[*]}"
    exit 1
  fi
  say "installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # The packages would start servers of their own, which nothing here uses.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get -qq -o Acquire::Retries=3 update </dev/null
  apt-get -qq -y -o Acquire::Retries=3 install --no-install-recommends "${packages[@]}" </dev/null >/dev/null
fi
if [ "$(nproc)" -lt 2 ]; then
  say "two cores are needed, one for the server and one for the load"
  exit 1
fi

# The examples first: they are built with the tests' features, and the broker that is measured shall not be.
cargo build --locked --release --examples
cargo build --locked --release
ulimit -n "$(ulimit -Hn)"
# Not `exec`: a policy that was put there for the installation is removed at the end.
target/release/examples/compare --broker target/release/headwater --report docs/performance.md "$@"
say "docs/performance.md is written"
