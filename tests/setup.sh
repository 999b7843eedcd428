#!/usr/bin/env bash
# Installs what the tests need beside Rust: redis-server, nginx, HAProxy, a Chromium, curl, strace, Node.js, Python, and
# the client libraries below tests/clients. Idempotent: what is there is left alone. As root on Debian it installs;
# elsewhere it says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
# Debian keeps servers where only root looks.
have() { PATH="$PATH:/usr/sbin" command -v "$1" >/dev/null 2>&1; }

packages=()
have redis-server || packages+=(redis-server)
have chromium || packages+=(chromium)
have curl || packages+=(curl ca-certificates)
have strace || packages+=(strace)
have cc || packages+=(gcc libc6-dev)
have make || packages+=(make)
have node || packages+=(nodejs)
have npm || packages+=(npm)
have nginx || packages+=(nginx)
have haproxy || packages+=(haproxy)
# On Debian the module `venv` is there before what it needs is.
python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || packages+=(python3 python3-venv)

if [ "${#packages[@]}" -gt 0 ]; then
  if ! have apt-get || [ "$(id -u)" != 0 ]; then
    say "the tests need programs that are not installed. On Debian or Ubuntu run:" >&2
    say "  sudo apt-get install --no-install-recommends ${packages[*]}" >&2
    say "elsewhere install them with the system's package manager, so that redis-server (7.0 or newer), nginx (1.22)," >&2
    say "haproxy (2.6), chromium, curl, strace, cc, make, node (18), npm and python3 (3.10), or newer, are in PATH." >&2
    exit 1
  fi
  say "installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # The packages would start servers of their own, which no test uses.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get -qq -o Acquire::Retries=3 update </dev/null
  apt-get -qq -y -o Acquire::Retries=3 install --no-install-recommends "${packages[@]}" </dev/null >/dev/null
fi
say "$(redis-server --version | cut -d' ' -f1-3), node $(node --version)"

for component in rustfmt clippy; do
  if ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
    have rustup || { say "cargo ${component/rustfmt/fmt} is missing: rustup component add $component" >&2; exit 1; }
    say "installing $component"
    rustup component add "$component" </dev/null
  fi
done

lock=tests/clients/js/package-lock.json
installed=tests/clients/js/node_modules/.package-lock.json
if [ ! -e "$installed" ] || [ "$lock" -nt "$installed" ]; then
  say "npm ci in tests/clients/js"
  (cd tests/clients/js && npm ci --no-audit --no-fund --loglevel=error </dev/null)
fi

# Made anew when what is pinned changed: pip would leave what is no longer named.
pins=tests/clients/python/requirements.txt
venv=tests/clients/python/.venv
if ! cmp -s "$pins" "$venv/installed.txt"; then
  say "pip install in $venv"
  python3 -m venv --clear "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes --no-deps \
    --only-binary :all: -r "$pins" </dev/null
  cp "$pins" "$venv/installed.txt"
fi
say "ready"
