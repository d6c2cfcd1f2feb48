package config

import (
	"strings"
	"testing"
)

func TestMonitor(t *testing.T) {
	const rest = "\n<source>\n@type forward\n</source>\n<match **>\n@type null\n</match>\n"
	for _, c := range []struct {
		name, lines   string
		err, warning  string
		tls, password bool
	}{
		{name: "loopback", lines: "bind 127.0.0.1"},
		{name: "loopback of IPv6", lines: "bind ::1"},
		{name: "by name", lines: "bind localhost"},
		{name: "open", lines: "bind 0.0.0.0", warning: "neither TLS nor a password"},
		{name: "an address", lines: "bind 192.0.2.1", warning: "neither TLS nor a password"},
		{name: "with a password", lines: "bind 0.0.0.0\nusername ops\npassword secret", password: true},
		{name: "with TLS", lines: "bind 0.0.0.0\n<transport tls>\ninsecure true\n</transport>", tls: true},
		{name: "half", lines: "username ops", err: "username and password belong together"},
		{name: "TLS without a certificate", lines: "<transport tls>\n</transport>", err: "cert_path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse("test.conf", "<source>\n@type monitor_agent\n"+c.lines+"\n</source>"+rest, OSEnv())
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if all := strings.Join(got.Warnings, "\n"); (c.warning == "") != (all == "") || !strings.Contains(all, c.warning) {
				t.Errorf("warnings %q, want %q", all, c.warning)
			}
			m := got.Monitor
			if (m.TLS != nil) != c.tls || (m.Username == "ops" && string(m.Password) == "secret") != c.password {
				t.Errorf("%+v", m)
			}
			var b strings.Builder
			if err := got.WriteEffective(&b); err != nil || strings.Contains(b.String(), "secret") {
				t.Errorf("%v: the password is shown:\n%s", err, b.String())
			}
		})
	}
}
