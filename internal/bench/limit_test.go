package main

import (
	"bytes"
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
	if err := decompressAll(bytes.NewReader(append(good, good...))); err != nil {
		t.Error(err)
	}
	packed[len(packed)/2] ^= 0x40
	if decompressAll(bytes.NewReader(append(good, message(packed)...))) == nil {
		t.Error("a broken payload is taken: it is not decompressed")
	}
	if decompressAll(bytes.NewReader(good[:len(good)-1])) == nil {
		t.Error("half a message is taken")
	}
}
