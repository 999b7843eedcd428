#!/usr/bin/env bash
# Checks the dependencies by deny.toml: licences, bans, sources; advisories where their database can be had. Installs
# cargo-deny where it is missing, which takes some minutes once.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'audit: %s\n' "$*"; }

if ! cargo deny --version >/dev/null 2>&1; then
  say "installing cargo-deny"
  if ! cargo install --locked --quiet cargo-deny --version '^0.20' </dev/null; then
    say "cargo-deny cannot be installed, see above; nothing was checked" >&2
    exit 1
  fi
fi
cargo deny --locked check licenses bans sources

# Where the database cannot be had, the rest still counts. A fetch that hangs is one that failed.
if reason=$(timeout 120 cargo deny --locked fetch db 2>&1 </dev/null); then
  cargo deny --locked check --disable-fetch advisories
else
  say "advisories were NOT CHECKED, because their database cannot be fetched:"
  printf '%s\n' "${reason:-it took longer than 120 s}" | tail -n 1
fi
