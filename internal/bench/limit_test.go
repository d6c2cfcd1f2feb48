package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"weir/internal/load"
)

func TestLimitCopiesEverything(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcde"), 200_001)
	for _, way := range []string{"cache", "direct"} {
		name := filepath.Join(".", "copy-of-"+way) // not on tmpfs, which may refuse O_DIRECT
		t.Cleanup(func() { os.Remove(name) })
		if err := copyTo(way, bytes.NewReader(want), name); err != nil {
			t.Fatal(way, err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(got, want) {
			t.Errorf("%s: %d bytes that differ", way, len(got))
		}
	}
}

func TestLimitDecompresses(t *testing.T) {
	_, packed, err := load.Payload(load.Options{Mode: "gzip", Events: 100, Size: 277, Tag: "t", Tags: 1})
	if err != nil {
		t.Fatal(err)
	}
	message := func(payload []byte) []byte {
		b, err := msgpack.Marshal([]any{"t", payload, map[string]any{"compressed": "gzip"}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := message(packed)
	broken := bytes.Clone(packed)
	broken[len(broken)/2] ^= 0x40
	for way, decompress := range decompressors {
		if err := decompressAll(bytes.NewReader(append(bytes.Clone(good), good...)), decompress()); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		if decompressAll(bytes.NewReader(append(bytes.Clone(good), message(broken)...)), decompress()) == nil {
			t.Errorf("%s: a broken payload is taken: it is not decompressed", way)
		}
		if decompressAll(bytes.NewReader(good[:len(good)-1]), decompress()) == nil {
			t.Errorf("%s: half a message is taken", way)
		}
	}
}

// BenchmarkGunzip decompresses what weir load sends, and what is unlike it, with weir's
// decoder and with the libraries.
func BenchmarkGunzip(b *testing.B) {
	ways := maps.Clone(decompressors)
	ways["std"] = func() func([]byte) error {
		var src bytes.Reader
		var text gzip.Reader
		return func(payload []byte) error {
			src.Reset(payload)
			if err := text.Reset(&src); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, &text)
			return err
		}
	}
	for _, c := range gzipPayloads(b) {
		for _, way := range []string{"own", "library", "std"} {
			b.Run(c.name+"/"+way, func(b *testing.B) {
				decompress := ways[way]()
				b.SetBytes(int64(c.text))
				b.ReportAllocs()
				for b.Loop() {
					if err := decompress(c.payload); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

type gzipPayload struct {
	name    string
	payload []byte
	text    int // bytes
}

// gzipPayloads are chunks of weir load, one event a thousand times, and random bytes.
func gzipPayloads(tb testing.TB) []gzipPayload {
	tb.Helper()
	zip := func(p []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, err := w.Write(p)
		if err = errors.Join(err, w.Close()); err != nil {
			tb.Fatal(err)
		}
		return b.Bytes()
	}
	var all []gzipPayload
	for _, n := range []int{1000, 100, 10, 1} {
		text, payload, err := load.Payload(load.Options{Mode: "gzip", Events: n, Size: 277, Tag: "t", Tags: 1})
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, gzipPayload{fmt.Sprintf("events=%d", n), payload, len(text)})
		if n == 1 {
			equal := bytes.Repeat(text, 1000)
			all = append(all, gzipPayload{"equal", zip(equal), len(equal)})
		}
	}
	random := make([]byte, 277_000)
	v := rand.New(rand.NewPCG(1, 2))
	for i := range random {
		random[i] = byte(v.Uint32())
	}
	return append(all, gzipPayload{"random", zip(random), len(random)})
}
