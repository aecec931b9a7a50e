#!/usr/bin/env bash
# Chromium for the browser test: installed from apt where that is possible; otherwise a line that says what is missing.
set -eu
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing chromium for the browser test"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null && exit 0
fi
echo "no chromium: the browser test will be skipped (install chromium to run it)"
exit 1
