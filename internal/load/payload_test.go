package load

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"weir/forward"
)

// TestSizes: an event has the size that was asked for, whatever it is filled with.
func TestSizes(t *testing.T) {
	for _, mode := range []string{"packed", "message", "json"} {
		for _, size := range []int{minEventSize, 81, 100, 150, 160, 170, 180, 190, 200, 210, 220, 230, 240, 277, 500, 70_000} {
			o := options("x:1", mode)
			o.Events, o.Size = 1, size
			m, err := newMaker(&o, 7)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.shapes[0].payload; got != size {
				t.Errorf("%s: an event of %d bytes, want %d", mode, got, size)
			}
		}
	}
}

// TestNumbers: a chunk has a number of its own past the four thousand millions that a
// connection sends in an hour.
func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		sender uint32
		chunk  uint64
	}{{0, 0}, {1, 1}, {maxConnections - 1, 1<<40 - 1}, {5, 1 << 32}} {
		id := fmt.Sprintf("%08x%016x", 7, number(c.sender, c.chunk))
		sender, chunk, ok := parseNumber([]byte(id)[runLen:])
		if sender != c.sender || chunk != c.chunk || !ok {
			t.Errorf("%s is read as sender %d, chunk %d", id, sender, chunk)
		}
	}
	o := options("x:1", "json")
	o.Tags, o.Tag = 3, "a<b"
	m, err := newMaker(&o, 7)
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.template().message(2, 1<<32+1, 1, 1_700_000_000)
	if err != nil {
		t.Fatal(err)
	}
	var got []json.RawMessage
	if err := json.Unmarshal(p, &got); err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	var tag string
	if err := json.Unmarshal(got[0], &tag); err != nil || tag != "a<b.00001" || string(got[1]) != "1700000000" {
		t.Errorf("%s: tag %q, %v", p, tag, err)
	}
	if want := `{"chunk":"000000070000020100000001"}`; string(got[3]) != want {
		t.Errorf("option %s, want %s", got[3], want)
	}
}

const sampleText = "\xef\xbb\xbf{\"z\":9007199254740993,\"a\":[1,2.5,null,true,-3],\"id\":\"mine\",\"b\":{\"y\":\"é\",\"id\":1}}\r\n" +
	"plain text\n\n  \n{\"broken\":\n[1]\n\xff\xfe\n{\"big\":18446744073709551615}"

// TestSample: each line is sent in its turn, its keys in their order, whole numbers
// as they are.
func TestSample(t *testing.T) {
	want := []string{
		`{"id":"","z":9007199254740993,"a":[1,2.5,null,true,-3],"b":{"y":"é","id":1}}`,
		`{"id":"","message":"plain text"}`, `{"id":"","message":"{\"broken\":"}`, `{"id":"","message":"[1]"}`,
		"{\"id\":\"\",\"message\":\"\xff\xfe\"}", `{"id":"","big":18446744073709551615}`,
	}
	for _, c := range []struct {
		mode   string
		events int
	}{{"message", 1}, {"packed", 1}, {"packed", 4}, {"packed", 20}, {"json", 1}} {
		o := options("x:1", c.mode)
		o.Events, o.Ack, o.Sample = c.events, false, []byte(sampleText)
		m, err := newMaker(&o, 7)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		tmpl := m.template()
		for chunk := uint64(0); len(got) < len(want); chunk += 2 {
			p, err := tmpl.message(0, chunk, 2, 1_700_000_000)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, records(t, p)...)
		}
		for i, w := range want {
			g := got[i]
			at := strings.Index(g, `"id":"`) + 6
			g = g[:at] + g[at+idLen:]
			if c.mode == "json" {
				w = strings.ToValidUTF8(w, `\ufffd\ufffd`)
			}
			if g != w {
				t.Errorf("%s of %d: record %d is %q, want %q", c.mode, c.events, i, g, w)
			}
		}
	}
}

// records reads the records of all messages in p, as JSON.
func records(t *testing.T, p []byte) (all []string) {
	t.Helper()
	if p[0] == '[' {
		for d := json.NewDecoder(bytes.NewReader(p)); d.More(); {
			var m []json.RawMessage
			if err := d.Decode(&m); err != nil {
				t.Fatal(err)
			}
			all = append(all, string(m[2]))
		}
		return all
	}
	for len(p) > 0 {
		n, err := forward.Skip(p)
		if err != nil {
			t.Fatal(err)
		}
		d := msgpack.NewDecoder(bytes.NewReader(p[:n]))
		elements, err1 := d.DecodeArrayLen()
		err2 := d.Skip() // the tag
		if elements == 4 {
			err := d.Skip() // the time
			all = append(all, text(t, d))
			if err1 != nil || err2 != nil || err != nil {
				t.Fatal(err1, err2, err)
			}
		} else {
			stream, err := d.DecodeBytes()
			if err1 != nil || err2 != nil || err != nil {
				t.Fatal(err1, err2, err)
			}
			d := msgpack.NewDecoder(bytes.NewReader(stream))
			for {
				if _, err := d.DecodeArrayLen(); err != nil {
					break
				}
				if err := d.Skip(); err != nil {
					t.Fatal(err)
				}
				all = append(all, text(t, d))
			}
		}
		p = p[n:]
	}
	return all
}

// text is one object as JSON, in its own order, numbers as they are.
func text(t *testing.T, d *msgpack.Decoder) string {
	t.Helper()
	code, err := d.PeekCode()
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case code&0xf0 == 0x80 || code == 0xde:
		n, err := d.DecodeMapLen()
		if err != nil {
			t.Fatal(err)
		}
		var parts []string
		for range n {
			key := text(t, d)
			parts = append(parts, key+":"+text(t, d))
		}
		return "{" + strings.Join(parts, ",") + "}"
	case code&0xf0 == 0x90:
		n, err := d.DecodeArrayLen()
		if err != nil {
			t.Fatal(err)
		}
		var parts []string
		for range n {
			parts = append(parts, text(t, d))
		}
		return "[" + strings.Join(parts, ",") + "]"
	}
	v, err := d.DecodeInterface()
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := v.(string); ok {
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	if v == nil {
		return "null"
	}
	return fmt.Sprint(v)
}

// TestReadSample: what cannot be a sample is told, gzip is read.
func TestReadSample(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(sampleText)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSample(write("s.gz", z.Bytes())); err != nil || string(got) != sampleText {
		t.Errorf("%q, %v", got, err)
	}
	for name, want := range map[string]string{
		write("empty", nil):                             "no lines",
		write("blank", []byte(" \r\n\n")):               "no lines",
		write("cut.gz", z.Bytes()[:20]):                 "unexpected EOF",
		write("large", bytes.Repeat([]byte("x"), 1001)): "more than 1.0 kB",
		filepath.Join(dir, "missing"):                   "no such file",
		dir:                                             "is a directory",
	} {
		if _, err := readSample(name, 1000); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), filepath.Base(name)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	o := options("x:1", "packed")
	o.Events = 10
	m := &maker{o: &o, samples: [][]field{{{"message", strings.Repeat("x", 100)}}}, largest: 1000}
	if _, err := m.stream(0); err == nil || !strings.Contains(err.Error(), "10 events of these are more than 1.0 kB, the largest chunk; give fewer --events") {
		t.Errorf("a chunk that is too large: %v", err)
	}
}

func TestCheck(t *testing.T) {
	nan := 0.0
	nan /= nan
	for want, change := range map[string]func(*Options){
		"--mode":            func(o *Options) { o.Mode = "bulk" },
		"--size 10":         func(o *Options) { o.Size = 10 },
		"at most 256 MiB":   func(o *Options) { o.Events, o.Size = maxEvents, maxEventSize },
		"more than 4 GiB":   func(o *Options) { o.Connections, o.Events = maxConnections, 1000 },
		"--rate NaN":        func(o *Options) { o.Rate = nan },
		"--rate 1e+10":      func(o *Options) { o.Rate = 1e10 },
		"--rate -1":         func(o *Options) { o.Rate = -1 },
		"--storm NaN":       func(o *Options) { o.Storm = nan },
		"--count 1844":      func(o *Options) { o.Count = 1<<64 - 1 },
		"bound it":          func(o *Options) { o.Storm, o.Count = 5, 5 },
		"must bound":        func(o *Options) { o.Count = 0 },
		"exclude":           func(o *Options) { o.Storm, o.Burst = 5, 5 },
		"--pid -3":          func(o *Options) { o.PID = -3 },
		"--ack-timeout":     func(o *Options) { o.AckTimeout = 0 },
		"--compress-each":   func(o *Options) { o.Mode, o.Verify = "gzip", []string{"x"} },
		"--verify [":        func(o *Options) { o.Verify = []string{"["} },
		`address "x"`:       func(o *Options) { o.Address = "x" },
		`address "x:99999"`: func(o *Options) { o.Address = "x:99999" },
		`address ""`:        func(o *Options) { o.Address = "" },
		"lacks the path":    func(o *Options) { o.Address = "unix:" },
		"--burst: needs":    func(o *Options) { o.Address, o.Burst = "unix:/x", 5 },
		"has no UDP":        func(o *Options) { o.Address, o.Senders, o.Heartbeat, o.HeartbeatEvery = "unix:/x", 5, "udp", 1 },
		"--tag":             func(o *Options) { o.Tag = "" },
	} {
		o := options("x:1", "packed")
		if err := o.Check(); err != nil {
			t.Fatal(err)
		}
		change(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

// TestDescriptors: a fleet that the limit of open files does not allow is refused, not
// begun.
func TestDescriptors(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	before := limit
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	limit.Cur = min(limit.Cur, 5000)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	n := int(limit.Cur)
	for name, c := range map[string]struct {
		change func(*Options)
		ok     bool
	}{
		"all senders":           {func(o *Options) { o.Senders = n }, false},
		"half and UDP":          {func(o *Options) { o.Senders, o.Heartbeat = n/2, "udp" }, false},
		"half":                  {func(o *Options) { o.Senders = n / 2 }, true},
		"idle and burst":        {func(o *Options) { o.Idle, o.Burst = n/2, n/2 }, false},
		"connections":           {func(o *Options) { o.Connections = n }, false},
		"a few less than all":   {func(o *Options) { o.Connections = n - spareFiles }, true},
		"a storm beside others": {func(o *Options) { o.Idle, o.Storm = n-spareFiles-1, 1 }, false},
	} {
		o := options("x:1", "packed")
		o.Connections = 0
		c.change(&o)
		if err := o.checkFiles(); (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "ulimit -n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMatching: a file counts once, whatever names it; directories are searched, and
// what is no regular file is left alone.
func TestMatching(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.MkdirAll(at("d/e"), 0o700), os.WriteFile(at("a"), nil, 0o600), os.WriteFile(at("d/e/f"), nil, 0o600),
		os.Symlink("a", at("link")), os.Link(at("a"), at("hard")), os.Symlink("nowhere", at("dangling")),
		os.Symlink("d", at("dirlink")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, patterns := range [][]string{{at("*")}, {dir}, {at("a"), at("*"), at("d")}, {at("a"), at("dirlink")}} {
		got, err := matching(patterns)
		if err != nil || !slices.Equal(got, []string{at("a"), at("d/e/f")}) {
			t.Errorf("%q: %q, %v", patterns, got, err)
		}
	}
	if got, err := matching([]string{at("nothing*")}); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
}

// TestCutGzip: of a file that is still being written, what is there counts.
func TestCutGzip(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	for i := range 1000 {
		if _, err := fmt.Fprintf(w, "{\"id\":\"%08x%016x%08x\"}\n", 7, i, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "f.gz")
	r := &run{maker: &maker{run: 7}}
	for size, least := range map[int]int{0: 0, 5: 0, z.Len() / 2: 1, z.Len() - 1: 1000, z.Len(): 1000} {
		if err := os.WriteFile(name, z.Bytes()[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := r.scanFile(name, func(uint32, uint64, uint32) { n++ }); err != nil || n < least {
			t.Errorf("%d of %d bytes: %d ids, %v", size, z.Len(), n, err)
		}
	}
	if err := os.WriteFile(name, []byte("this is no gzip file at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.scanFile(name, nil); err == nil || !strings.Contains(err.Error(), "f.gz") {
		t.Errorf("%v", err)
	}
}
