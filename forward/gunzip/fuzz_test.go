package gunzip

import (
	"bytes"
	"compress/flate"
	"io"
	"math/rand/v2"
	"testing"
)

// fuzzMax is how much text of an input is compared.
const fuzzMax = 4 << 20

// FuzzInflate: for any stream we read the text that compress/flate reads, to the same
// end, and fail where it does.
func FuzzInflate(f *testing.F) {
	for _, p := range small() {
		f.Add(p[len(plainHeader) : len(p)-8])
	}
	r := &Reader{}
	f.Fuzz(func(t *testing.T, stream []byte) {
		src := bytes.NewReader(stream)
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(src), fuzzMax))
		if len(want) == fuzzMax {
			return
		}
		p := append([]byte(plainHeader), stream...)
		if wantErr == nil {
			p = member(stream[:len(stream)-src.Len()], string(want))
		}
		got, err := readAll(t, r, p)
		n := common(got, want)
		if (err == nil) != (wantErr == nil) || n < min(len(got), len(want)) || err == nil && len(got) != len(want) {
			t.Fatalf("%d bytes, %v; compress/flate: %d bytes, %v; %d of them the same", len(got), err, len(want), wantErr, n)
		}
	})
}

// FuzzMembers: any payload is gzip for us if it is for klauspost/compress, and is the
// same text.
func FuzzMembers(f *testing.F) {
	for _, p := range small() {
		f.Add(p)
	}
	j := &judge{}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < 64<<10 { // of at most 1000 times as much text
			j.agree(t, p)
		}
	})
}

// FuzzRandomStream: streams that are made from the seed have the text they were made
// for.
func FuzzRandomStream(f *testing.F) {
	f.Add(uint64(1), uint16(1000))
	r := &Reader{}
	f.Fuzz(func(t *testing.T, seed uint64, size uint16) {
		stream, text := randomStream(rand.New(rand.NewPCG(seed, 0)), int(size))
		got, err := readAll(t, r, member(stream, text))
		if err != nil || string(got) != text {
			t.Fatalf("%v, %d bytes of %d, %d of them right", err, len(got), len(text), common(got, []byte(text)))
		}
	})
}
