package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/vmihailenco/msgpack/v5"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"weir/buffer"
	"weir/forward"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a StateSaver that fails when told to.
type memory struct {
	state []byte
	fail  bool
}

func (m *memory) State() []byte { return m.state }

func (m *memory) SaveState(s []byte) error {
	if m.fail {
		return errors.New("disk full")
	}
	m.state = bytes.Clone(s)
	return nil
}

const noon = 1767268800 // 2026-01-01T12:00:00Z

func pack(vs ...any) []byte {
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	enc.SetSortMapKeys(true)
	for _, v := range vs {
		if err := enc.Encode(v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func event(sec int64, record any) []byte { return pack([]any{sec, record}) }

func entry(tag string, events ...[]byte) buffer.Entry {
	return buffer.Entry{Tag: []byte(tag), Events: len(events), Received: time.Unix(noon+5, 0), Payload: [][]byte{bytes.Join(events, nil)}}
}

func batch(entries ...buffer.Entry) *buffer.Batch {
	b := &buffer.Batch{Entries: entries}
	for _, e := range entries {
		b.Events += e.Events
	}
	return b
}

func outFile() FormatConfig {
	return FormatConfig{Type: "out_file", Zone: Zone{UTC: true}, OutputTime: true, OutputTag: true}
}

func newFile(t *testing.T, c FileConfig, s StateSaver) *File {
	t.Helper()
	if c.DirMode == 0 {
		c.DirMode, c.FileMode = 0o755, 0o644
	}
	c.Zone.UTC = true
	o, err := NewFile(c, s, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// deliver delivers and commits as a Runner does.
func deliver(t *testing.T, o *File, s *memory, b *buffer.Batch) {
	t.Helper()
	state, err := o.Deliver(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	s.state = state
}

// tree is every file below dir with its content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func requireTree(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := tree(t, dir)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("files\n%q, want\n%q", got, want)
	}
}

func TestPaths(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, c := range []struct {
		name, path string
		config     FileConfig
		tag        string
		want       string
	}{
		{"tag", "${tag}", FileConfig{Append: true}, "app.web", "app.web"},
		{"parts", "${tag[0]}/${tag[1]}-${tag[-1]}-${tag[9]}", FileConfig{Append: true}, "a.b.c", "a/b-c-_"},
		{"time", "%Y/%m/%d/%H%M%S.x", FileConfig{Append: true}, "t", "2026/01/01/120000.x"},
		{"percent", "a%%b", FileConfig{Append: true}, "t", "a%b"},
		{"day appended", "a", FileConfig{Append: true, Timekey: 24 * time.Hour, Suffix: ".log"}, "t", "a.20260101.log"},
		{"hour appended", "a", FileConfig{Append: true, Timekey: time.Hour}, "t", "a.2026010112"},
		{"minute appended", "a", FileConfig{Append: true, Timekey: time.Minute}, "t", "a.202601011200"},
		{"second appended", "a", FileConfig{Append: true, Timekey: time.Second}, "t", "a.20260101120000"},
		{"star", "a.*.b", FileConfig{Append: true, Timekey: 24 * time.Hour}, "t", "a.20260101.b"},
		{"time given", "a-%Y", FileConfig{Append: true, Timekey: 24 * time.Hour, Suffix: ".log"}, "t", "a-2026.log"},
		{"index", "a", FileConfig{Suffix: ".log"}, "t", "a_0.log"},
		{"gzip", "a", FileConfig{Append: true, Suffix: ".log", Gzip: true}, "t", "a.log.gz"},
		{"tag climbs", "d/${tag}", FileConfig{Append: true}, "../../etc/passwd", "d/.._.._etc_passwd"},
		{"tag is dots", "d/${tag}", FileConfig{Append: true}, "..", "d/_"},
		{"parts are dots", "d/${tag[0]}${tag[1]}/x", FileConfig{Append: true}, "..", "d/__/x"},
		{"tag is empty", "d/${tag}", FileConfig{Append: true}, "", "d/_"},
		{"tag has NUL", "${tag}", FileConfig{Append: true}, "a\x00b\n", "a_b_"},
		{"tag is long", "${tag}", FileConfig{Append: true}, long, long[:maxName] + "-3f6c5eeb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.config.Path = filepath.Join(dir, c.path)
			c.config.Format = FormatConfig{Type: "json"}
			s := &memory{}
			o := newFile(t, c.config, s)
			deliver(t, o, s, batch(entry(c.tag, event(noon, map[string]any{"a": 1}))))
			got := tree(t, dir)
			if strings.HasPrefix(c.name, "tag is long") {
				for name := range got {
					if !strings.HasPrefix(name, long[:maxName]+"-") || len(name) != maxName+9 {
						t.Errorf("file %s", name)
					}
				}
				return
			}
			if _, ok := got[c.want]; !ok || len(got) != 1 {
				t.Errorf("files %q, want %s", got, c.want)
			}
		})
	}
	for _, bad := range []string{"", "dir/", "${chunk_id}", "${tag[x]}", "%Q", "a%"} {
		if _, err := NewFile(FileConfig{Path: bad, Format: outFile()}, &memory{}, zaptest.NewLogger(t)); err == nil {
			t.Errorf("path %q is taken", bad)
		}
	}
}

func TestFormats(t *testing.T) {
	record := map[string]any{"b": 1, "message": "hello\n"}
	msgpackRecord := string(pack(record))
	for _, c := range []struct {
		name   string
		format FormatConfig
		want   string
	}{
		{"out_file", outFile(), "2026-01-01T12:00:00Z\ta.b\t{\"b\":1,\"message\":\"hello\\n\"}\n"},
		{"out_file, zone", FormatConfig{Type: "out_file", OutputTime: true, OutputTag: true, Zone: Zone{Name: "+09:00"}, Delimiter: "SPACE"},
			"2026-01-01T21:00:00+09:00 a.b {\"b\":1,\"message\":\"hello\\n\"}\n"},
		{"out_file, JSON only", FormatConfig{Type: "out_file"}, "{\"b\":1,\"message\":\"hello\\n\"}\n"},
		{"json", FormatConfig{Type: "json"}, "{\"b\":1,\"message\":\"hello\\n\"}\n"},
		{"json, inject", FormatConfig{Type: "json", Inject: &InjectConfig{TagKey: "tag", TimeKey: "t", HostnameKey: "h", Hostname: "x", TimeType: "unixtime"}},
			"{\"b\":1,\"message\":\"hello\\n\",\"h\":\"x\",\"tag\":\"a.b\",\"t\":1767268800}\n"},
		{"msgpack", FormatConfig{Type: "msgpack"}, msgpackRecord},
		{"msgpack, inject", FormatConfig{Type: "msgpack", Inject: &InjectConfig{TagKey: "tag"}},
			"\xdf\x00\x00\x00\x03" + msgpackRecord[1:] + "\xdb\x00\x00\x00\x03tag\xdb\x00\x00\x00\x03a.b"},
		{"single_value", FormatConfig{Type: "single_value", MessageKey: "message", Newline: true}, "hello\n\n"},
		{"single_value, number", FormatConfig{Type: "single_value", MessageKey: "b", Newline: true}, "1\n"},
		{"single_value, missing", FormatConfig{Type: "single_value", MessageKey: "x", Newline: true}, "\n"},
		{"stdout", FormatConfig{Type: "stdout", Zone: Zone{UTC: true}}, "2026-01-01 12:00:00.000000000 +0000 a.b: {\"b\":1,\"message\":\"hello\\n\"}\n"},
		{"strftime", FormatConfig{Type: "out_file", OutputTime: true, TimeFormat: "%d/%b/%Y %T.%3N %s %j %%", Zone: Zone{UTC: true}},
			"01/Jan/2026 12:00:00.000 1767268800 001 %\t{\"b\":1,\"message\":\"hello\\n\"}\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			o, err := NewStdout(c.format, &b)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := o.Deliver(t.Context(), batch(entry("a.b", event(noon, record)))); err != nil {
				t.Fatal(err)
			}
			if b.String() != c.want {
				t.Errorf("got  %q\nwant %q", &b, c.want)
			}
		})
	}
	for _, bad := range []FormatConfig{{Type: "xml"}, {Type: "json", TimeFormat: "%Q"}, {Type: "json", Zone: Zone{Name: "Nowhere/City"}}, {Type: "out_file", Delimiter: "X"}} {
		if _, err := NewStdout(bad, io.Discard); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// TestEventForms: every form of an event and of a payload comes out.
func TestEventForms(t *testing.T) {
	plain := event(noon, map[string]any{"n": 1})
	meta := pack([]any{[]any{noon, map[string]any{"m": 1}}, map[string]any{"n": 2}})
	zero := pack([]any{0, map[string]any{"n": 3}})
	eventTime := append([]byte("\x92\xd7\x00\x69\x56\x62\xc0\x00\x00\x00\x00"), pack(map[string]any{"n": 4})...)
	stream := bytes.Join([][]byte{plain, meta, zero, eventTime}, nil)
	const want = "2026-01-01T12:00:00Z\tt\t{\"n\":1}\n2026-01-01T12:00:00Z\tt\t{\"n\":2}\n2026-01-01T12:00:05Z\tt\t{\"n\":3}\n2026-01-01T12:04:16Z\tt\t{\"n\":4}\n"
	var zipped bytes.Buffer
	for _, part := range [][]byte{stream[:10], stream[10:]} { // two members, cut in an event
		w := gzip.NewWriter(&zipped)
		w.Write(part)
		w.Close()
	}
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer zw.Close()
	for name, e := range map[string]buffer.Entry{
		"plain": {Payload: [][]byte{stream}},
		"gzip":  {Payload: [][]byte{zipped.Bytes()}, Flags: buffer.FlagGzip},
		"zstd":  {Payload: [][]byte{zw.EncodeAll(stream, nil)}, Flags: buffer.FlagZstd},
	} {
		e.Tag, e.Events, e.Received = []byte("t"), 4, time.Unix(noon+5, 0)
		var b bytes.Buffer
		o, err := NewStdout(outFile(), &b)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time with used memory
			b.Reset()
			if _, err := o.Deliver(t.Context(), batch(e)); err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(b.String(), "12:04:16", "12:04:16")
			if got != want {
				t.Errorf("%s:\n%s", name, got)
			}
		}
	}
	// A payload much larger than the window, with an event that is larger too.
	big := bytes.Join([][]byte{event(noon, map[string]any{"x": strings.Repeat("y", 3*windowSize)}), bytes.Repeat(plain, 50_000)}, nil)
	e := buffer.Entry{Tag: []byte("t"), Events: 50_001, Payload: [][]byte{zw.EncodeAll(big, nil)}, Flags: buffer.FlagZstd}
	var b bytes.Buffer
	o, err := NewStdout(FormatConfig{Type: "json"}, &b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Deliver(t.Context(), batch(e)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n"); n != 50_001 {
		t.Errorf("%d events", n)
	}
}

// TestExactlyOnce crashes at each step of a delivery (after the intent, after
// each file was written, before the commit) and delivers again: every event is
// in the files once.
func TestExactlyOnce(t *testing.T) {
	for _, gz := range []bool{false, true} {
		for _, appending := range []bool{false, true} {
			t.Run(fmt.Sprintf("gzip=%v append=%v", gz, appending), func(t *testing.T) {
				dir := t.TempDir()
				c := FileConfig{Path: filepath.Join(dir, "${tag}"), Append: appending, Gzip: gz, Format: FormatConfig{Type: "json"}}
				s := &memory{}
				o := newFile(t, c, s)
				first := batch(entry("a", event(noon, map[string]any{"n": 1})))
				second := batch(entry("a", event(noon, map[string]any{"n": 2})), entry("b", event(noon, map[string]any{"n": 3})))
				deliver(t, o, s, first)
				for range 3 { // the commit is lost each time
					if _, err := o.Deliver(t.Context(), second); err != nil {
						t.Fatal(err)
					}
					o.Close()
					o = newFile(t, c, s)
				}
				deliver(t, o, s, second)
				want := map[string]string{"a": `{"n":1}{"n":2}`, "b": `{"n":3}`}
				for name, text := range tree(t, dir) {
					key := name[:1]
					if gz {
						r, err := gzip.NewReader(strings.NewReader(text))
						if err != nil {
							t.Fatal(err)
						}
						b, err := io.ReadAll(r)
						if err != nil {
							t.Fatal(err)
						}
						text = string(b)
					}
					if got := strings.ReplaceAll(text, "\n", ""); got != want[key] {
						t.Errorf("%s: %s, want %s", name, got, want[key])
					}
					delete(want, key)
				}
				if len(want) > 0 {
					t.Errorf("missing: %v", want)
				}
			})
		}
	}
}

// TestForeignFile: without append, a file that weir did not write is left alone;
// with it, it is added to, and kept when a delivery is cut off.
func TestForeignFile(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a_0", "a"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("foreign\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, appending := range []bool{false, true} {
		s := &memory{}
		c := FileConfig{Path: filepath.Join(dir, "a"), Append: appending, Format: FormatConfig{Type: "json"}}
		o := newFile(t, c, s)
		b := batch(entry("t", event(noon, map[string]any{"n": 1})))
		if _, err := o.Deliver(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		o.Close()
		o = newFile(t, c, s) // crashed before the commit
		deliver(t, o, s, b)
	}
	requireTree(t, dir, map[string]string{"a": "foreign\n{\"n\":1}\n", "a_0": "foreign\n", "a_1": "{\"n\":1}\n"})
}

// TestFailedDelivery: nothing of a batch whose delivery fails is in the files.
func TestFailedDelivery(t *testing.T) {
	dir := t.TempDir()
	s := &memory{}
	o := newFile(t, FileConfig{Path: filepath.Join(dir, "${tag}"), Append: true, Format: FormatConfig{Type: "json"}}, s)
	deliver(t, o, s, batch(entry("a", event(noon, map[string]any{"n": 1}))))
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil { // in the way
		t.Fatal(err)
	}
	both := batch(entry("a", event(noon, map[string]any{"n": 2})), entry("b", event(noon, map[string]any{"n": 3})))
	if _, err := o.Deliver(t.Context(), both); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "b")) {
		t.Errorf("Deliver = %v, want an error that names the file", err)
	}
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	s.fail = true
	if _, err := o.Deliver(t.Context(), both); err == nil {
		t.Error("delivered without a durable intent")
	}
	if got := tree(t, dir)["a"]; got != "{\"n\":1}\n" {
		t.Errorf("a is %q after failed deliveries", got)
	}
	s.fail = false
	deliver(t, o, s, both)
	requireTree(t, dir, map[string]string{"a": "{\"n\":1}\n{\"n\":2}\n", "b": "{\"n\":3}\n"})
}

// TestRotatedByOthers: logrotate moves the file away, or cuts it.
func TestRotatedByOthers(t *testing.T) {
	dir := t.TempDir()
	s := &memory{}
	path := filepath.Join(dir, "a")
	o := newFile(t, FileConfig{Path: path, Append: true, Format: FormatConfig{Type: "json"}}, s)
	one := func(n int) { deliver(t, o, s, batch(entry("t", event(noon, map[string]any{"n": n})))) }
	one(1)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	one(2)
	one(3)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	one(4)
	requireTree(t, dir, map[string]string{"a": "{\"n\":4}\n", "a.1": "{\"n\":1}\n"})
}

// TestManyFiles: descriptors stay bounded however many tags there are.
func TestManyFiles(t *testing.T) {
	dir := t.TempDir()
	s := &memory{}
	o := newFile(t, FileConfig{Path: filepath.Join(dir, "${tag}"), Append: true, Format: FormatConfig{Type: "json"}}, s)
	var entries []buffer.Entry
	for i := range 3 * maxOpen {
		entries = append(entries, entry(fmt.Sprintf("t%d", i), event(noon, map[string]any{"n": i})))
	}
	for range 2 {
		deliver(t, o, s, batch(entries...))
		if len(o.open) > maxOpen || len(o.known) > maxOpen {
			t.Errorf("%d files open, %d in the state", len(o.open), len(o.known))
		}
	}
	got := tree(t, dir)
	if len(got) != 3*maxOpen || got["t7"] != "{\"n\":7}\n{\"n\":7}\n" {
		t.Errorf("%d files, t7 %q", len(got), got["t7"])
	}
}

// TestFileDirect: deliveries of any length, so that their ends share blocks,
// are whole and in order, past the page cache and, where O_DIRECT is refused,
// through it.
func TestFileDirect(t *testing.T) {
	for name, refused := range map[string]bool{"taken": false, "refused": true} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "out")
			c := FileConfig{Path: path, Append: true, DirMode: 0o755, FileMode: 0o644, Format: FormatConfig{Type: "json"}}
			var want bytes.Buffer
			state := &memory{}
			n := 0
			deliver := func(o *File, events int) {
				var stream []byte
				for range events {
					stream = append(stream, event(noon, map[string]any{"n": n, "m": strings.Repeat("x", n%500)})...)
					n++
				}
				for i := n - events; i < n; i++ {
					fmt.Fprintf(&want, `{"m":"%s","n":%d}`+"\n", strings.Repeat("x", i%500), i)
				}
				s, err := o.Deliver(context.Background(), batch(buffer.Entry{Tag: []byte("t"), Events: events, Payload: [][]byte{stream}}))
				if err != nil {
					t.Fatal(err)
				}
				state.state = s
			}
			for range 3 { // opened anew each time
				o, err := NewFile(c, state, zaptest.NewLogger(t))
				if err != nil {
					t.Fatal(err)
				}
				for _, events := range []int{3, 5000, 1, 12_345, 20, 2000} {
					deliver(o, events)
					o.open[path].noDirect = refused
				}
				if direct := o.open[path].direct != nil; direct == refused {
					t.Errorf("direct %v", direct)
				}
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want.Bytes()) {
				t.Errorf("%d bytes written, want %d, and the same", len(got), want.Len())
			}
		})
	}
}

// TestFormatDoesNotAllocate holds that an event costs no memory of its own on its
// way out.
func TestFormatDoesNotAllocate(t *testing.T) {
	record := pack(map[string]any{"message": strings.Repeat("m", 149), "status": 200, "took": 0.034, "ok": true, "nothing": nil})
	ev, tag, dst := forward.Event{Sec: noon, Nsec: 5}, []byte("app.access"), make([]byte, 0, 4096)
	for _, kind := range []string{"out_file", "json", "msgpack", "stdout"} {
		c := outFile()
		c.Type = kind
		f, err := newFormatter(c)
		if err != nil {
			t.Fatal(err)
		}
		n := testing.AllocsPerRun(100, func() {
			if _, _, err := f.append(dst, tag, ev, record); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations an event", kind, n)
		}
	}
}

// BenchmarkFile is the way from a stored batch to JSON lines in a file, without
// the buffer.
func BenchmarkFile(b *testing.B) {
	rec := map[string]any{"message": strings.Repeat("m", 149), "status": 200, "method": "GET", "host": "www.example.com", "took": 0.034, "level": "info", "trace": "4bf92f3577b34da6a3ce929d0e0e4736"}
	stream := bytes.Repeat(event(noon, rec), 1000)
	e := buffer.Entry{Tag: []byte("app.access"), Events: 1000, Payload: [][]byte{stream}}
	o, err := NewFile(FileConfig{Path: filepath.Join(b.TempDir(), "${tag}"), Append: true, DirMode: 0o755, FileMode: 0o644, Format: outFile()}, &memory{}, zaptest.NewLogger(b))
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	many := batch(e, e, e, e, e, e, e, e, e, e)
	b.SetBytes(int64(10 * len(stream)))
	begun := cpuTime(b)
	for b.Loop() {
		if _, err := o.Deliver(context.Background(), many); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*10_000/(cpuTime(b)-begun).Seconds(), "events/core-s")
}

// cpuTime is the CPU time of the process, user and system (getrusage(2)).
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
