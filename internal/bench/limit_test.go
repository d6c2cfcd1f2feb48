package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
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
