package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func testEnv() Env {
	vars := map[string]string{"PORT": "2400", "EMPTY": ""}
	return Env{
		Lookup:   func(name string) (string, bool) { v, ok := vars[name]; return v, ok },
		Hostname: func() (string, error) { return "host.example", nil },
		LookupHost: func(host string) ([]string, error) {
			if host == "sender.example" {
				return []string{"192.0.2.7"}, nil
			}
			return nil, fmt.Errorf("no such host")
		},
	}
}

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("weir.conf", text, testEnv())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const minimal = "<source>\n  @type forward\n</source>\n<match **>\n  @type null\n</match>\n"

func TestTyped(t *testing.T) {
	c := parse(t, `
# An aggregator as people write it.
<system>
  log_level debug
  workers 4
</system>
<source>
  @type forward
  @id in
  port "#{ENV['PORT']}"   # from the environment
  bind 127.0.0.1, ::1,unix:/run/weir.sock
  backlog 16384
  on_backlog_mismatch warn
  chunk_size_limit 8m
  linger_timeout 5
  @label @LOGS
  <security>
    self_hostname "#{hostname}"
    shared_key 'a#b"c'
    user_auth true
    <user>
      username alice
      password "tab\there"
    </user>
    <client>
      host sender.example
      shared_key own
      users ["alice"]
    </client>
    <client>
      network 198.51.100.0/24
    </client>
  </security>
</source>
<label @LOGS>
  <match app.{web,db} other.**>
    @type copy
    <buffer>
      total_limit_size 2g
      overflow_action block
    </buffer>
    <store>
      @type file
      path /var/log/${tag}/%Y%m%d
      compress gzip
      <format>
        @type json
      </format>
      <buffer tag,time>
        timekey 1h
        flush_interval 500ms
        retry_max_times 3
        retry_wait 2s
      </buffer>
      <secondary>
        @type file
        path /var/log/failed
      </secondary>
    </store>
    <store>
      @type stdout
    </store>
  </match>
  <match **>
    @type null
  </match>
</label>
`)
	s := c.Sources[0]
	if want := []string{"127.0.0.1:2400", "[::1]:2400", "unix:/run/weir.sock"}; !reflect.DeepEqual(s.Addresses, want) {
		t.Errorf("addresses %q, want %q", s.Addresses, want)
	}
	if s.ID != "in" || s.Backlog != 16384 || !s.AllowShortBacklog || s.ChunkSizeLimit != 8<<20 || s.Linger != 5 || s.MemoryLimit != 1<<30 {
		t.Errorf("source %+v", s)
	}
	if sec := s.Security; sec.SelfHostname != "host.example" || sec.SharedKey != `a#b"c` || sec.Users["alice"] != "tab\there" {
		t.Errorf("security %q %q %q", sec.SelfHostname, string(sec.SharedKey), string(sec.Users["alice"]))
	}
	if cl := s.Security.Clients; len(cl) != 2 || cl[0].Network.String() != "192.0.2.7/32" || cl[0].SharedKey != "own" || fmt.Sprint(cl[0].Users) != "[alice]" || cl[1].Network.String() != "198.51.100.0/24" {
		t.Errorf("clients %+v", cl)
	}
	if got := fmt.Sprintf("%v %+v %#v", s.Security, s.Security, *s.Security); strings.Contains(got, "a#b") || strings.Contains(got, "tab") {
		t.Errorf("a secret is printed: %s", got)
	}
	m := c.Routes["@LOGS"][0]
	if m.Buffer.TotalLimit != 2<<30 || m.Buffer.Overflow != "block" || len(m.Outputs) != 2 || m.Buffer.Path != "weir-data/buffer/@LOGS:app.%7Bweb%2Cdb%7D%20other.%2A%2A" {
		t.Errorf("match %+v", m)
	}
	o := m.Outputs[0]
	if !o.File.Gzip || o.Format.Type != "json" || o.Flush != 500*time.Millisecond || o.File.Timekey != time.Hour || o.Retry.MaxTimes != 3 || o.Retry.Wait != 2*time.Second || o.Secondary.File.Path != "/var/log/failed" {
		t.Errorf("output %+v", o)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "weir.conf:5:3: workers is ignored") {
		t.Errorf("warnings %q", c.Warnings)
	}
	if c.LogLevel != "debug" || c.Monitor.Address() != "127.0.0.1:24220" {
		t.Errorf("%+v", c)
	}
}

func TestErrors(t *testing.T) {
	source := func(lines string) string {
		return "<source>\n  @type forward\n" + lines + "</source>\n<match **>\n  @type null\n</match>\n"
	}
	for _, c := range []struct{ name, text, want string }{
		{"misspelt", source("  baklog 5\n"), `weir.conf:3:3: unknown parameter baklog of <source> with @type forward; did you mean "backlog"?`},
		{"bad size", source("  chunk_size_limit 8x\n"), `weir.conf:3:3: chunk_size_limit: "8x" is not a size such as 512k, 8m or 2g`},
		{"bad number", source("  port -1\n"), `weir.conf:3:3: port: "-1" is not a whole number of 0 or more`},
		{"port", source("  port 70000\n"), `weir.conf:3:3: port 70000 is over 65535`},
		{"bad enum", source("  on_backlog_mismatch wran\n"), `weir.conf:3:3: on_backlog_mismatch: "wran" is none of error, warn; did you mean "warn"?`},
		{"twice", source("  port 1\n  port 2\n"), `weir.conf:4:3: port is given twice; the first is in line 3`},
		{"monitor tag", source("") + "<source>\n  @type monitor_agent\n  tag weir\n</source>\n", `weir.conf:9:3: tag is not supported by this version of weir; weir makes no events of its own, so that every event stored is one that was received: read /metrics or /api/plugins.json instead`},
		{"no listener", source("  listeners 0\n"), `weir.conf:3:3: listeners 0 is not a number from 1 to 256`},
		{"too many listeners", source("  listeners 257\n"), `weir.conf:3:3: listeners 257 is not a number from 1 to 256`},
		{"section", source("  <securty>\n  </securty>\n"), `weir.conf:3:3: unknown section <securty> in <source>; did you mean "security"?`},
		{"missing", source("  <security>\n    self_hostname a\n  </security>\n"), `weir.conf:3:3: <security> lacks its shared_key`},
		{"no user", source("  <security>\n    self_hostname a\n shared_key k\n user_auth true\n  </security>\n"), `weir.conf:3:3: user_auth is true and there is no <user>: nobody could connect`},
		{"nobody", source("  <security>\n    self_hostname a\n shared_key k\n allow_anonymous_source false\n  </security>\n"), `weir.conf:3:3: allow_anonymous_source is false and there is no <client>: nobody could connect`},
		{"client", source("  <security>\n    self_hostname a\n shared_key k\n<client>\n</client>\n  </security>\n"), `weir.conf:6:1: <client> takes either host or network`},
		{"client network", source("  <security>\n    self_hostname a\n shared_key k\n<client>\nnetwork x\n</client>\n  </security>\n"), `weir.conf:7:1: network "x" is not of the form 192.0.2.0/24`},
		{"client host", source("  <security>\n    self_hostname a\n shared_key k\n<client>\nhost nowhere.example\n</client>\n  </security>\n"), `weir.conf:7:1: host nowhere.example cannot be resolved: no such host`},
		{"client user", source("  <security>\n    self_hostname a\n shared_key k\n<client>\nnetwork 192.0.2.1\nusers bob\n</client>\n  </security>\n"), `weir.conf:3:3: <client> names user bob, and there is no such <user>`},
		{"TLS", source("  <transport tls>\n  </transport>\n"), `weir.conf:3:3: <transport tls> needs cert_path and private_key_path`},
		{"TLS key", source("  <transport tls>\n    cert_path x\n  </transport>\n"), `weir.conf:3:3: cert_path and private_key_path belong together`},
		{"TLS versions", source("  <transport tls>\n    insecure true\n    min_version TLS1_3\n    max_version TLS1_2\n  </transport>\n"), `weir.conf:3:3: min_version is over max_version`},
		{"TLS clients", source("  <transport tls>\n    insecure true\n    client_cert_auth true\n  </transport>\n"), `weir.conf:3:3: client_cert_auth needs ca_path, the CAs of the clients`},
		{"TLS FIPS", source("  <transport tls>\n    insecure true\n    ensure_fips true\n  </transport>\n"), `weir.conf:5:5: ensure_fips is true and weir does not run in FIPS 140-3 mode: start it with GODEBUG=fips140=on`},
		{"TLS verifier", source("  <transport tls>\n    insecure true\n    cert_verifier x.rb\n  </transport>\n"), `weir.conf:5:5: cert_verifier is not supported by this version of weir; it names Ruby code`},
		{"keepalive", source("  deny_keepalive true\n  send_keepalive_packet true\n"), `weir.conf:3:3: deny_keepalive and send_keepalive_packet exclude each other`},
		{"UDP", source("  <transport udp>\n    insecure true\n  </transport>\n"), `weir.conf:3:3: <transport udp> is neither tls nor tcp`},
		{"hostname", source("  source_hostname_key h\n  resolve_hostname false\n"), `weir.conf:4:3: resolve_hostname must be true with source_hostname_key`},
		{"empty tag", source("  tag ''\n"), `weir.conf:3:3: tag must not be empty`},
		{"empty prefix", source("  add_tag_prefix ''\n"), `weir.conf:3:3: add_tag_prefix must not be empty`},
		{"unclosed", "<source>\n  @type forward\n", `weir.conf:1:1: <source> is never closed: </source> is missing`},
		{"closes nothing", minimal + "</match>\n", `weir.conf:7:1: </match> closes nothing`},
		{"wrong close", "<source>\n  @type forward\n</match>\n", `weir.conf:3:1: </match> stands where </source> is expected, for <source> of line 1`},
		{"type", "<source>\n  @type forwad\n</source>\n" + minimal, `weir.conf:1:1: <source> with @type forwad is not known; weir knows forward, monitor_agent; did you mean "forward"?`},
		{"no type", "<source>\n</source>\n" + minimal, `weir.conf:1:1: <source> lacks its @type; weir knows forward, monitor_agent`},
		{"filter", "<filter **>\n</filter>\n" + minimal, `weir.conf:1:1: weir stores messages as they come and has no filters: filter at the sender, or behind weir`},
		{"quote", source("  bind \"127.0.0.1\n"), `weir.conf:3:8: the closing quote is missing`},
		{"ruby", source("  bind \"#{1+1}\"\n"), `weir.conf:3:8: weir runs no Ruby: #{1+1} is not one of`},
		{"env", source("  bind \"#{ENV.fetch('NO')}\"\n"), `weir.conf:3:8: the environment has no NO`},
		{"outside", "port 1\n" + minimal, `weir.conf:1:1: port stands outside of any section`},
		{"include", "@include nowhere.conf\n" + minimal, `weir.conf:1:1: open nowhere.conf: no such file or directory; check the path`},
		{"no source", "<match **>\n  @type null\n</match>\n", `weir.conf:1:1: there is no <source> with @type forward: weir would receive nothing`},
		{"no match", "<source>\n  @type forward\n</source>\n", `weir.conf:1:1: there is no <match> for source forward: weir would store nothing`},
		{"label", source("  @label @X\n"), `weir.conf:1:1: source forward sends to @label @X, and there is no such <label>`},
		{"path", "<source>\n@type forward\n</source>\n<match **>\n  @type file\n</match>\n", `weir.conf:4:1: <match> lacks its path`},
		{"storage in a store", "<source>\n@type forward\n</source>\n<match **>\n  @type copy\n  <store>\n    @type null\n    <buffer>\n      total_limit_size 1g\n    </buffer>\n  </store>\n</match>\n",
			`weir.conf:9:7: total_limit_size belongs into the <buffer> of the copy match, since all its stores read one buffer`},
		{"pattern", "<source>\n@type forward\n</source>\n<match a.{b>\n  @type null\n</match>\n", `weir.conf:4:1: <match a.{b>: { is never closed`},
		{"same buffer", "<source>\n@type forward\n</source>\n<match a>\n  @type null\n  <buffer>\n    path x\n  </buffer>\n</match>\n<match **>\n  @type null\n  <buffer>\n    path ./x\n  </buffer>\n</match>\n",
			`weir.conf:1:1: <match a> and <match **> share the buffer path ./x; give each its own`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("weir.conf", c.text, testEnv())
			if err == nil || !strings.Contains(err.Error()+"\n", c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestTransport(t *testing.T) {
	c := parse(t, strings.Replace(minimal, "@type forward", `@type forward
<transport tls>
  cert_path /etc/weir/cert.pem
  private_key_path /etc/weir/key.pem
  ca_path /etc/weir/clients.pem
  client_cert_auth true
  version TLSv1_3
</transport>`, 1))
	want := &TLS{CertPath: "/etc/weir/cert.pem", KeyPath: "/etc/weir/key.pem", ClientCAPath: "/etc/weir/clients.pem", ClientCertAuth: true,
		MinVersion: "1.3", MaxVersion: "1.3", Ciphers: "ALL:!aNULL:!eNULL:!SSLv2", CommonName: "host.example"}
	if got := c.Sources[0].TLS; !reflect.DeepEqual(got, want) {
		t.Errorf("TLS %+v, want %+v", got, want)
	}
	if plain := parse(t, strings.Replace(minimal, "@type forward", "@type forward\n<transport tcp>\n</transport>", 1)); plain.Sources[0].TLS != nil {
		t.Error("<transport tcp> asks for TLS")
	}
}

// TestAllErrorsAtOnce: an operator mends them in one go.
func TestAllErrorsAtOnce(t *testing.T) {
	_, err := Parse("weir.conf", "<source>\n  @type forward\n  baklog 1\n  prot 2\n</source>\n<mach **>\n</mach>\n", testEnv())
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("want three lines:\n%v", err)
	}
}

// TestEffectiveReadsBack: what is printed is read as the same configuration.
func TestEffectiveReadsBack(t *testing.T) {
	c := parse(t, strings.Replace(minimal, "@type null", "@type file\n  path \"/var/log/a b#c\"\n  <buffer>\n    timekey 1d\n  </buffer>", 1))
	var first, second bytes.Buffer
	if err := c.WriteEffective(&first); err != nil {
		t.Fatal(err)
	}
	again := parse(t, first.String())
	if err := again.WriteEffective(&second); err != nil {
		t.Fatal(err)
	}
	if first.String() != second.String() {
		t.Errorf("first\n%s\nsecond\n%s", &first, &second)
	}
	if len(again.Warnings) != 0 {
		t.Errorf("warnings %q", again.Warnings)
	}
	for _, want := range []string{"backlog 0\n", "max_connections 65536\n", "total_limit_size 64g\n", "path \"/var/log/a b#c\"\n"} {
		if !strings.Contains(first.String(), want) {
			t.Errorf("lacks %q:\n%s", want, &first)
		}
	}
}

func TestDiff(t *testing.T) {
	old := parse(t, minimal)
	changed := parse(t, strings.Replace(strings.Replace(minimal, "@type forward", "@type forward\nbacklog 5\nport 9", 1), "@type null", "@type stdout", 1))
	got := map[string]bool{}
	for _, c := range Diff(old, changed) {
		got[c.Path] = c.Live
	}
	want := map[string]bool{"source[0].backlog": true, "source[0].port": false, "match[0]": false}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Diff = %v, want %v", got, want)
	}
	if d := Diff(old, parse(t, minimal)); len(d) != 0 {
		t.Errorf("Diff of the same = %v", d)
	}
}

// TestTimekey: files are sliced by day unless the chunk keys say otherwise.
func TestTimekey(t *testing.T) {
	for _, c := range []struct {
		buffer string
		want   time.Duration
	}{
		{"", 24 * time.Hour}, {"<buffer>\n</buffer>", 24 * time.Hour}, {"<buffer tag>\n</buffer>", 0},
		{"<buffer tag, time>\n</buffer>", 24 * time.Hour}, {"<buffer time>\ntimekey 1h\n</buffer>", time.Hour},
	} {
		got := parse(t, strings.Replace(minimal, "@type null", "@type file\npath x\n"+c.buffer, 1)).Routes[""][0].Outputs[0].File.Timekey
		if got != c.want {
			t.Errorf("%q: timekey %v, want %v", c.buffer, got, c.want)
		}
	}
}

func TestInclude(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("main.conf", "@include *.inc\n@include match.txt\n")
	write("a.inc", "<source>\n  @type forward\n  @include port.txt\n</source>\n")
	write("port.txt", "port 77\n")
	write("match.txt", "<match **>\n  @type null\n</match>\n")
	c, err := Load(filepath.Join(dir, "main.conf"), testEnv())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Sources[0].Addresses[0]; got != "0.0.0.0:77" {
		t.Errorf("address %s", got)
	}
	write("port.txt", "prot 77\n")
	if _, err := Load(filepath.Join(dir, "main.conf"), testEnv()); err == nil || !strings.Contains(err.Error(), "port.txt:1:1: unknown parameter prot") {
		t.Errorf("error %v does not name the included file", err)
	}
	write("port.txt", "@include main.conf\n")
	if _, err := Load(filepath.Join(dir, "main.conf"), testEnv()); err == nil || !strings.Contains(err.Error(), "includes itself") {
		t.Errorf("cycle: %v", err)
	}
}

// TestPatterns has the examples of fluentd's documentation.
func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		yes, no_ []string
	}{
		{"a.*", []string{"a.b"}, []string{"a", "a.b.c", "b.a"}},
		{"a.**", []string{"a", "a.b", "a.b.c"}, []string{"ab", "b.a"}},
		{"**", []string{"a", "a.b", "", "x\ny"}, nil},
		{"{a,b}", []string{"a", "b"}, []string{"c", "ab"}},
		{"a.{b,c}.*", []string{"a.b.x", "a.c.y"}, []string{"a.b", "a.d.x"}},
		{"a.{b,c.**}", []string{"a.b", "a.c", "a.c.d.e"}, []string{"a.b.d", "a"}},
		{"a b", []string{"a", "b"}, []string{"a b"}},
		{"a.** b.*", []string{"a", "a.b.c", "b.d"}, []string{"b", "b.d.e"}},
		{"**.log", []string{"log", "a.log", "a.b.log"}, []string{"alog", "a.logs"}},
		{"a.*.c", []string{"a.b.c"}, []string{"a.c", "a.b.b.c"}},
		{"a+b", []string{"a+b"}, []string{"aab"}},
	} {
		r, err := NewRouter([]*Match{{Pattern: c.pattern}})
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range c.yes {
			if r.Match([]byte(tag)) == nil {
				t.Errorf("%s does not match %q", c.pattern, tag)
			}
		}
		for _, tag := range c.no_ {
			if r.Match([]byte(tag)) != nil {
				t.Errorf("%s matches %q", c.pattern, tag)
			}
		}
	}
}

func TestRouterDoesNotAllocate(t *testing.T) {
	r, err := NewRouter([]*Match{{Pattern: "x.**"}, {Pattern: "**"}})
	if err != nil {
		t.Fatal(err)
	}
	tag := []byte("app.access")
	r.Match(tag)
	if n := testing.AllocsPerRun(100, func() { r.Match(tag) }); n != 0 {
		t.Errorf("%v allocations for a known tag", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(minimal)
	f.Add("<source>\n@type forward\nbind \"#{ENV['PORT'] || 'x'}\"\n</source>\n<match {a,b}.**>\n@type file\npath [\"x\",\n\"y\"]\n</match>")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "@include") {
			t.Skip() // no files here
		}
		c, err := Parse("fuzz.conf", text, testEnv())
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := c.WriteEffective(&b); err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("again.conf", b.String(), testEnv()); err != nil {
			t.Fatalf("the effective configuration is refused: %v\n%s", err, &b)
		}
	})
}
