package eventjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"
	"pgregory.net/rapid"
)

func TestTypes(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"nil", "\xc0", `null`},
		{"false", "\xc2", `false`},
		{"true", "\xc3", `true`},
		{"fixint", "\x7f", `127`},
		{"negative fixint", "\xe0", `-32`},
		{"uint 8", "\xcc\xff", `255`},
		{"uint 16", "\xcd\xff\xff", `65535`},
		{"uint 32", "\xce\xff\xff\xff\xff", `4294967295`},
		{"uint 64", "\xcf\xff\xff\xff\xff\xff\xff\xff\xff", `18446744073709551615`},
		{"int 8", "\xd0\x80", `-128`},
		{"int 16", "\xd1\x80\x00", `-32768`},
		{"int 32", "\xd2\x80\x00\x00\x00", `-2147483648`},
		{"int 64", "\xd3\x80\x00\x00\x00\x00\x00\x00\x00", `-9223372036854775808`},
		{"float 32", "\xca\x3d\xcc\xcc\xcd", `0.1`},
		{"float 64", "\xcb\x3f\xb9\x99\x99\x99\x99\x99\x9a", `0.1`},
		{"whole float", "\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00", `1.0`},
		{"large float", "\xcb\x7e\x37\xe4\x3c\x88\x00\x75\x9c", `1e+300`},
		{"negative zero", "\xcb\x80\x00\x00\x00\x00\x00\x00\x00", `-0.0`},
		{"NaN", "\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", `null`},
		{"infinity", "\xca\xff\x80\x00\x00", `null`},
		{"fixstr", "\xa3abc", `"abc"`},
		{"str 8", "\xd9\x03abc", `"abc"`},
		{"str 16", "\xda\x00\x03abc", `"abc"`},
		{"str 32", "\xdb\x00\x00\x00\x03abc", `"abc"`},
		{"bin 8", "\xc4\x03\x00\x01\x02", `"\u0000\u0001\u0002"`},
		{"escapes", "\xac\"\\/\b\f\n\r\t\x1f\x7fab", `"\"\\/\b\f\n\r\t\u001f` + "\x7f" + `ab"`},
		{"UTF-8", "\xa6\u65e5\u672c", `"日本"`},
		{"invalid UTF-8", "\xa6a\xff\xfeb\xe6\x97", `"a` + "\ufffd\ufffd" + `b` + "\ufffd\ufffd" + `"`},
		{"surrogate", "\xa3\xed\xa0\x80", `"` + strings.Repeat("\ufffd", 3) + `"`},
		{"array", "\x93\x01\xa1a\xc0", `[1,"a",null]`},
		{"array 16", "\xdc\x00\x01\x01", `[1]`},
		{"array 32", "\xdd\x00\x00\x00\x01\x01", `[1]`},
		{"map", "\x82\xa1a\x01\xa1b\x80", `{"a":1,"b":{}}`},
		{"map 16", "\xde\x00\x01\xa1a\x01", `{"a":1}`},
		{"map 32", "\xdf\x00\x00\x00\x01\xa1a\x01", `{"a":1}`},
		{"equal keys", "\x82\xa1a\x01\xa1a\x02", `{"a":1,"a":2}`},
		{"other keys", "\x84\x01\x02\xc0\x01\xc3\x01\x91\xa1x\x01", `{"1":2,"null":1,"true":1,"[\"x\"]":1}`},
		{"bin key", "\x81\xc4\x01k\x01", `{"k":1}`},
		{"EventTime", "\xd7\x00\x6b\x04\xf5\x3d\x01\x75\xc1\x9a", `1795487037.024494490`},
		{"ext 8 EventTime", "\xc7\x08\x00\x00\x00\x00\x01\x00\x00\x00\x05", `1.000000005`},
		{"ext", "\xd5\x05ab", `{"type":5,"data":"YWI="}`},
		{"negative ext", "\xc7\x01\xffa", `{"type":-1,"data":"YQ=="}`},
		{"ext 16", "\xc8\x00\x01\x01a", `{"type":1,"data":"YQ=="}`},
		{"ext 32", "\xc9\x00\x00\x00\x01\x01a", `{"type":1,"data":"YQ=="}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, n, err := AppendValue([]byte("x"), []byte(c.in+"rest"))
			if err != nil || n != len(c.in) || string(out) != "x"+c.want {
				t.Errorf("got %s, %d, %v; want %s, %d", out, n, err, c.want, len(c.in))
			}
			for cut := range len(c.in) {
				if out, _, err := AppendValue([]byte("x"), []byte(c.in[:cut])); err == nil || string(out) != "x" {
					t.Errorf("cut at %d: %s, %v", cut, out, err)
				}
			}
		})
	}
	for _, in := range []string{"", "\xc1", "\x91\xc1", strings.Repeat("\x91", maxDepth+1)} {
		if _, _, err := AppendValue(nil, []byte(in)); err == nil {
			t.Errorf("%.20q: no error", in)
		}
	}
}

// TestAgreesWithMsgpack compares with msgpack/v5 and encoding/json on what all
// of them can say.
func TestAgreesWithMsgpack(t *testing.T) {
	value := rapid.Deferred(func() *rapid.Generator[any] { return anyValue(3) })
	rapid.Check(t, func(t *rapid.T) {
		v := value.Draw(t, "value")
		p, err := msgpack.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out, n, err := AppendValue(nil, p)
		if err != nil || n != len(p) {
			t.Fatalf("%d of %d, %v", n, len(p), err)
		}
		var got, want any
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("got %s, want %s", out, text)
		}
	})
}

func anyValue(depth int) *rapid.Generator[any] {
	all := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.Int64().AsAny(), rapid.Uint64().AsAny(),
		rapid.Float64().AsAny(), rapid.Float32().AsAny(), rapid.String().AsAny(),
	}
	if depth > 0 {
		all = append(all, rapid.SliceOfN(anyValue(depth-1), 0, 20).AsAny(),
			rapid.MapOfN(rapid.String(), anyValue(depth-1), 0, 20).AsAny())
	}
	return rapid.OneOf(all...)
}

func FuzzAppendValue(f *testing.F) {
	for _, s := range []string{"\x82\xa1a\x01\xa1b\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", "\xd7\x00\x6b\x04\xf5\x3d\xff\x75\xc1\x9a", "\x81\x91\xa1\xff\xa9\"\\\x00\xed\xa0\x80abc"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		out, n, err := AppendValue(nil, p)
		if err != nil {
			return
		}
		if n < 1 || n > len(p) {
			t.Fatalf("length %d of %d", n, len(p))
		}
		if !json.Valid(out) || !utf8.Valid(out) {
			t.Fatalf("not valid: %q", out)
		}
	})
}

// record is a log event of 277 bytes of msgpack with its time.
func record() []byte {
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	enc.SetSortMapKeys(true)
	err := enc.EncodeMap(map[string]any{
		"message": "GET /api/v1/items/1234?expand=all HTTP/1.1", "status": 200, "method": "GET", "host": "www.example.com",
		"user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "remote": "203.0.113.17", "bytes": 15321,
		"took": 0.034, "level": "info", "pid": 4242, "ok": true, "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
	})
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

func TestDoesNotAllocate(t *testing.T) {
	p, dst := record(), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { AppendValue(dst, p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAppendValue(b *testing.B) {
	p, dst := record(), make([]byte, 0, 4096)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := AppendValue(dst, p); err != nil {
			b.Fatal(err)
		}
	}
}

// TestStringLengths: strings of each length are written right with what needs an
// escape, or nearly does, in any place, whatever way is taken for that length.
func TestStringLengths(t *testing.T) {
	for n := range 41 {
		for at := range max(n, 1) {
			for _, c := range "\x00\n\x1f !\"#[\\]\x7f\u0080\u00c3\u00ff" {
				p := []byte(strings.Repeat("abcdefghij", 5)[:n])
				if n > 0 {
					p[at] = byte(c)
				}
				out := AppendString([]byte("x"), p)
				var got string
				if err := json.Unmarshal(out[1:], &got); err != nil || out[0] != 'x' {
					t.Fatalf("%q: %v in %q", p, err, out)
				}
				if want := strings.ToValidUTF8(string(p), "\ufffd"); got != want {
					t.Fatalf("%q became %q", p, got)
				}
			}
		}
	}
}
