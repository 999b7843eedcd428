#!/usr/bin/env bash
# Installs what the tests need beside Rust: redis-server, a Chromium, curl, strace, Node.js and the
# browser driver. Idempotent: what is there is left alone. As root on Debian it installs; elsewhere it says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

packages=()
have redis-server || packages+=(redis-server)
have chromium || packages+=(chromium)
have curl || packages+=(curl ca-certificates)
have strace || packages+=(strace)
have node || packages+=(nodejs)
have npm || packages+=(npm)

if [ "${#packages[@]}" -gt 0 ]; then
  if ! have apt-get || [ "$(id -u)" != 0 ]; then
    say "the tests need programs that are not installed. On Debian or Ubuntu run:" >&2
    say "  sudo apt-get install --no-install-recommends ${packages[*]}" >&2
    say "elsewhere install them with the system's package manager, so that redis-server (7.0 or newer), chromium," >&2
    say "curl, strace, node (18 or newer) and npm are in PATH." >&2
    exit 1
  fi
  say "installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # The package would start a server of its own, which no test uses.
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
say "ready"
