#!/usr/bin/env bash
# curl in a loop that reconnects after the `retry:` that it was told and resumes with the last id of a whole event.
#
# Driven by tests/it over the standard streams: a URL comes in, every event goes out as {"id", "event", "data"}.
set -uo pipefail

json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//$'\n'/\\n}"
}

read -r url
last_event_id= retry_ms=3000
while true; do
  headers=(-H 'Accept: text/event-stream')
  [ -z "$last_event_id" ] || headers+=(-H "Last-Event-ID: $last_event_id")
  id=$last_event_id event= data=
  # A block counts when its blank line has come: what a broken connection leaves behind is forgotten.
  while IFS= read -r line; do
    value=${line#*:}
    value=${value# }
    case $line in
      id:*) id=$value ;;
      event:*) event=$value ;;
      data:*) data+=$value$'\n' ;;
      retry:*) retry_ms=$value ;;
      '')
        last_event_id=$id
        if [ -n "$data" ]; then
          printf '{"id":%s,"event":%s,"data":%s}\n' "$(json "$id")" "$(json "${event:-message}")" "$(json "${data%$'\n'}")"
        fi
        event= data=
        ;;
    esac
  done < <(curl --silent --no-buffer --fail --noproxy '*' "${headers[@]}" "$url")
  sleep "$(printf '%d.%03d' $((retry_ms / 1000)) $((retry_ms % 1000)))"
done
