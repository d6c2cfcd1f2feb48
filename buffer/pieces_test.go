package buffer

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestPieces: whatever is looked at, passed over and taken, it is what would come
// of the bytes in one piece, and taking copies nothing.
func TestPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var blocks [][]byte
		var all []byte
		for i := range rapid.IntRange(1, 6).Draw(t, "blocks") {
			b := bytes.Repeat([]byte{byte(i + 1)}, rapid.IntRange(1, 9).Draw(t, "length"))
			for j := range b {
				b[j] += byte(16 * j)
			}
			blocks = append(blocks, b)
			all = append(all, b...)
		}
		v := pieces{first: blocks[0], rest: blocks[1:]}
		for at := 0; at < len(all); {
			n := rapid.IntRange(0, len(all)-at).Draw(t, "n")
			if got := v.peek(int64(n)); !bytes.Equal(got, all[at:at+n]) {
				t.Fatalf("peek %d at %d: %x, want %x", n, at, got, all[at:at+n])
			}
			if rapid.Bool().Draw(t, "skip") {
				v.skip(int64(n))
			} else {
				got := v.take(nil, int64(n))
				if len(got) == 0 || !bytes.Equal(bytes.Join(got, nil), all[at:at+n]) {
					t.Fatalf("take %d at %d: %x, want %x", n, at, got, all[at:at+n])
				}
			}
			at += n
		}
		if got := v.peek(9); len(got) != 0 {
			t.Fatalf("%x behind the end", got)
		}
	})
}
