# $1: 1 on installation, 2 on upgrade. The service is neither enabled nor started.
systemd-sysusers rushkv.conf || :
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload >/dev/null 2>&1 || :
fi
if [ "$1" -eq 1 ]; then
    echo "rushkv: installed, not started."
    echo "  Settings:  /etc/rushkv/rushkv.toml (check them with: rushkv --config /etc/rushkv/rushkv.toml --check-config)"
    echo "  Start it:  systemctl enable --now rushkv"
fi
