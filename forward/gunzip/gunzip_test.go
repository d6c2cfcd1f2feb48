package gunzip

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"unsafe"

	"github.com/klauspost/compress/gzip"
)

// readAll reads a payload with some bytes kept at each call, as the last piece had
// them.
func readAll(t testing.TB, r *Reader, payload []byte) (text []byte, err error) {
	t.Helper()
	v := rand.New(rand.NewPCG(uint64(len(payload)), 1))
	r.Reset(payload)
	for keep := 0; ; {
		p, err := r.Next(keep)
		if !bytes.Equal(p[:keep], text[len(text)-keep:]) {
			t.Fatalf("after %d bytes, other bytes are kept than the last %d", len(text), keep)
		}
		if len(p)-keep > MaxPiece {
			t.Fatalf("a piece of %d bytes", len(p)-keep)
		}
		text = append(text, p[keep:]...)
		if err == io.EOF {
			return text, nil
		}
		if err != nil {
			return text, err
		}
		keep = v.IntN(1 + min(len(text), history, 1<<v.IntN(17)))
	}
}

// wants compares the text, or that there is an error.
func wants(t testing.TB, payload []byte, text string, want error) {
	t.Helper()
	got, err := readAll(t, &Reader{}, payload)
	switch {
	case want != nil && !errors.Is(err, want):
		t.Errorf("error %v, want %v", err, want)
	case want == nil && err != nil:
		t.Errorf("%v", err)
	case want == nil && string(got) != text:
		t.Errorf("%d bytes, want %d; the first that differs is %d", len(got), len(text), common(got, []byte(text)))
	}
}

func common(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// TestStreams reads streams made by hand, and compress/flate judges them as we do.
func TestStreams(t *testing.T) {
	fixedBlock := func(f func(w *bitWriter, c codes)) []byte {
		w := &bitWriter{}
		f(w, w.fixedBlock(1))
		return w.b
	}
	dynamicBlock := func(lit, dist []uint8, f func(w *bitWriter, c codes)) []byte {
		w := &bitWriter{}
		f(w, w.dynamicBlock(1, lit, dist))
		return w.b
	}
	// lengths are those of the symbols named, of numLit or as many as the last needs.
	lengths := func(of map[int]uint8) []uint8 {
		l := make([]uint8, 257)
		for symbol, n := range of {
			for len(l) <= symbol {
				l = append(l, 0)
			}
			l[symbol] = n
		}
		return l
	}
	ab := lengths(map[int]uint8{'a': 2, 'b': 2, endSymbol: 2, 257: 2}) // 257 is a match of 3
	for _, c := range []struct {
		name   string
		stream []byte
		text   string
		err    error
	}{
		{"stored", (&bitWriter{}).stored(1, "text").b, "text", nil},
		{"stored, empty", (&bitWriter{}).stored(1, "").b, "", nil},
		{"stored, several, the longest", (&bitWriter{}).stored(0, "a").stored(0, strings.Repeat("x", 65535)).stored(1, "b").b, "a" + strings.Repeat("x", 65535) + "b", nil},
		{"stored after a block that ends within a byte", func() []byte {
			w := &bitWriter{}
			c := w.fixedBlock(0)
			return w.literals(c, "ab").end(c).stored(1, "cd").b
		}(), "abcd", nil},
		{"stored, wrong complement", []byte("\x01\x04\x00\xfb\xfetext"), "", errStored},
		{"type 3", []byte{7}, "", errType},
		{"fixed", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "a\x00\xff\x8f\x90").end(c) }), "a\x00\xff\x8f\x90", nil},
		{"fixed, empty", fixedBlock(func(w *bitWriter, c codes) { w.end(c) }), "", nil},
		{"match of 1 before", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "a").match(c, 258, 1).end(c) }), strings.Repeat("a", 259), nil},
		{"match that overlaps", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "abc").match(c, 10, 3).end(c) }), "abcabcabcabca", nil},
		{"match of the first byte", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "abcd").match(c, 3, 4).end(c) }), "abcdabc", nil},
		{"match before the first byte", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "abcd").match(c, 3, 5).end(c) }), "", errDistance},
		{"match as the first", fixedBlock(func(w *bitWriter, c codes) { w.match(c, 3, 1).end(c) }), "", errDistance},
		{"length symbol 286", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "a").code(c.lit[286]).bits(0, 20) }), "", errSymbol},
		{"length symbol 287", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "a").code(c.lit[287]).bits(0, 20) }), "", errSymbol},
		{"distance symbol 30", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "a").code(c.lit[257]).code(c.dist[30]).bits(0, 20) }), "", errSymbol},
		{"distance symbol 31", fixedBlock(func(w *bitWriter, c codes) { w.literals(c, "a").code(c.lit[257]).code(c.dist[31]).bits(0, 20) }), "", errSymbol},

		{"dynamic", dynamicBlock(ab, []uint8{1, 1}, func(w *bitWriter, c codes) { w.literals(c, "ab").match(c, 3, 2).end(c) }), "ababa", nil},
		{"one distance", dynamicBlock(ab, []uint8{1}, func(w *bitWriter, c codes) { w.literals(c, "b").match(c, 3, 1).end(c) }), "bbbb", nil},
		{"one distance, the other bit", dynamicBlock(ab, []uint8{1}, func(w *bitWriter, c codes) { w.literals(c, "b").code(c.lit[257]).bits(1, 1).bits(0, 20) }), "", errSymbol},
		{"one distance of 2 bits", dynamicBlock(ab, []uint8{2}, func(w *bitWriter, c codes) { w.literals(c, "b").end(c) }), "", errCode},
		{"no distance", dynamicBlock(ab, []uint8{0}, func(w *bitWriter, c codes) { w.literals(c, "ab").end(c) }), "ab", nil},
		{"no distance, a match", dynamicBlock(ab, []uint8{0}, func(w *bitWriter, c codes) { w.literals(c, "ab").code(c.lit[257]).bits(0, 20) }), "", errSymbol},
		{"only the end", dynamicBlock(lengths(map[int]uint8{endSymbol: 1}), []uint8{0}, func(w *bitWriter, c codes) { w.end(c) }), "", nil},
		{"only the end, the other bit", dynamicBlock(lengths(map[int]uint8{endSymbol: 1}), []uint8{0}, func(w *bitWriter, c codes) { w.bits(0xffffff, 24) }), "", errSymbol},
		{"only the end, of 2 bits", dynamicBlock(lengths(map[int]uint8{endSymbol: 2}), []uint8{0}, func(w *bitWriter, c codes) { w.bits(0, 24) }), "", errCode},
		{"nothing at all", dynamicBlock(lengths(nil), []uint8{0}, func(w *bitWriter, c codes) { w.bits(0, 24) }), "", errSymbol},
		{"no end, cut", dynamicBlock(lengths(map[int]uint8{'a': 1, 'b': 1}), []uint8{0}, func(w *bitWriter, c codes) { w.bits(0, 24) }), "", io.ErrUnexpectedEOF},
		{"incomplete literals", dynamicBlock(lengths(map[int]uint8{'a': 2, 'b': 2, endSymbol: 2}), []uint8{1, 1}, func(w *bitWriter, c codes) { w.end(c) }), "", errCode},
		{"over-subscribed literals", dynamicBlock(lengths(map[int]uint8{'a': 1, 'b': 1, endSymbol: 1}), []uint8{1, 1}, func(w *bitWriter, c codes) { w.end(c) }), "", errCode},
		{"over-subscribed and long", dynamicBlock(lengths(map[int]uint8{'a': 1, 'b': 2, 'c': 2, endSymbol: 15}), []uint8{1, 1}, func(w *bitWriter, c codes) { w.end(c) }), "", errCode},
		{"incomplete distances", dynamicBlock(ab, []uint8{1, 2}, func(w *bitWriter, c codes) { w.end(c) }), "", errCode},
		{"over-subscribed distances", dynamicBlock(ab, []uint8{1, 1, 1}, func(w *bitWriter, c codes) { w.end(c) }), "", errCode},
		{"codes of all lengths", dynamicBlock(lengths(map[int]uint8{'a': 1, 'b': 2, 'c': 3, 'd': 4, 'e': 5, 'f': 6, 'g': 7, 'h': 8, 'i': 9, 'j': 10, 'k': 11, 'l': 12, 'm': 13, 'n': 14, 257: 15, endSymbol: 15}),
			[]uint8{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15}, func(w *bitWriter, c codes) {
				w.literals(c, "nmlkjihgfedcba")
				for d := 1; d < 14; d++ {
					w.match(c, 3, d)
				}
				w.end(c)
			}), matches("nmlkjihgfedcba", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13), nil},
		{"287 literals and lengths", (&bitWriter{}).bits(1, 1).bits(2, 2).bits(30, 5).bits(0, 5).bits(15, 4).bits(0, 200).b, "", errNumbers},
		{"31 distances", (&bitWriter{}).bits(1, 1).bits(2, 2).bits(0, 5).bits(30, 5).bits(15, 4).bits(0, 200).b, "", errNumbers},
		// The code of code lengths: 4 lengths, of 16, 17, 18 and 0.
		{"no code lengths", preBlock([4]uint{}).bits(0, 100).b, "", errSymbol},
		{"code lengths incomplete", preBlock([4]uint{2, 2, 2, 0}).bits(0, 100).b, "", errCode},
		{"code lengths over-subscribed", preBlock([4]uint{1, 1, 1, 0}).bits(0, 100).b, "", errCode},
		{"repeat at the first", preBlock([4]uint{1, 0, 0, 1}).bits(1, 1).bits(0, 100).b, "", errRepeat},
		{"zeros beyond the last", preBlock([4]uint{0, 0, 1, 1}).bits(1, 1).bits(127, 7).bits(1, 1).bits(127, 7).bits(0, 100).b, "", errRepeat},
		{"one code length, the other bit", preBlock([4]uint{0, 0, 0, 1}).bits(1, 1).bits(0, 100).b, "", errSymbol},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := bytes.NewReader(c.stream)
			text, err := io.ReadAll(flate.NewReader(src))
			if (err == nil) != (c.err == nil) || err == nil && (string(text) != c.text || src.Len() > 0) {
				t.Fatalf("compress/flate reads %q, %v, %d bytes left", text, err, src.Len())
			}
			p := member(c.stream, c.text)
			if c.err == io.ErrUnexpectedEOF {
				p = p[:len(p)-8]
			}
			wants(t, p, c.text, c.err)
			// Far from the end of the input, where the decoder goes another way.
			if c.err != io.ErrUnexpectedEOF {
				wants(t, append(p, member((&bitWriter{}).stored(1, "and more of it").b, "and more of it")...), c.text+"and more of it", c.err)
			}
		})
	}
}

// matches appends 3 bytes from each of the distances.
func matches(s string, distances ...int) string {
	for _, d := range distances {
		for range 3 {
			s += s[len(s)-d : len(s)-d+1]
		}
	}
	return s
}

// preBlock begins a dynamic block of 257 and 1 lengths, written in a code of the
// lengths 16, 17, 18 and 0.
func preBlock(n [4]uint) *bitWriter {
	w := (&bitWriter{}).bits(1, 1).bits(2, 2).bits(0, 10).bits(0, 4)
	for _, n := range n {
		w.bits(n, 3)
	}
	return w
}

// TestRandomStreams reads streams that no compressor would make, over many windows.
func TestRandomStreams(t *testing.T) {
	r := &Reader{}
	for seed := range uint64(40) {
		v := rand.New(rand.NewPCG(seed, 7))
		var payload []byte
		var text string
		for range 1 + v.IntN(3) {
			stream, more := randomStream(v, 1<<(8+v.IntN(13)))
			payload = append(payload, member(stream, more)...)
			text += more
		}
		got, err := readAll(t, r, payload)
		if err != nil || string(got) != text {
			t.Fatalf("seed %d: %v, %d bytes of %d, %d of them right", seed, err, len(got), len(text), common(got, []byte(text)))
		}
	}
}

// TestWindowEnds puts the longest match at the farthest distance at each place around
// the end of the window, with literals in front of it so that a turn writes as much
// as it can.
func TestWindowEnds(t *testing.T) {
	r := &Reader{}
	v := rand.New(rand.NewPCG(1, 2))
	filler := make([]byte, MaxPiece+history)
	for i := range filler {
		filler[i] = "abcdefgh"[v.IntN(8)]
	}
	for _, distance := range []int{1, 15, 16, 31, history} {
		for at := full - history - 280; at <= full-history+10; at++ {
			w := &bitWriter{}
			text := append([]byte{}, filler[:at]...)
			for p := text; len(p) > 0; p = p[min(len(p), 65535):] {
				w.stored(0, string(p[:min(len(p), 65535)]))
			}
			lit := make([]uint8, 286)
			lit['a'], lit['b'], lit[endSymbol], lit[285] = 2, 2, 2, 2
			dist, _, _ := distSymbol(distance)
			dists := make([]uint8, dist+1)
			dists[dist] = 1
			c := w.dynamicBlock(1, lit, dists)
			w.literals(c, "abab").match(c, 258, distance).literals(c, "ba").match(c, 258, distance).end(c)
			for _, s := range []string{"abab", "ba"} {
				text = append(text, s...)
				for range 258 {
					text = append(text, text[len(text)-distance])
				}
			}
			got, err := readAll(t, r, member(w.b, string(text)))
			if err != nil || !bytes.Equal(got, text) {
				t.Fatalf("distance %d at %d: %v, %d bytes of %d, %d of them right", distance, at, err, len(got), len(text), common(got, text))
			}
		}
	}
}

// TestDistanceIsOfTheMember: what a match may refer to ends where its member begins,
// also after the window was moved.
func TestDistanceIsOfTheMember(t *testing.T) {
	for _, before := range []int{1, 100, full - history, MaxPiece, MaxPiece + 1000, 3 * MaxPiece} {
		for _, after := range []int{0, 1, 1000, history - 1} {
			for _, beyond := range []int{0, 1} {
				if after == 0 && beyond == 0 {
					continue
				}
				secret := strings.Repeat("s", before)
				var first bytes.Buffer
				w := stdgzip.NewWriter(&first)
				w.Write([]byte(secret))
				w.Close()
				second := &bitWriter{}
				second.stored(0, strings.Repeat("x", after))
				c := second.fixedBlock(1)
				second.match(c, 3, after+beyond).end(c)
				text := strings.Repeat("x", after+3)
				var want error
				if beyond > 0 {
					want = errDistance
				}
				wants(t, append(first.Bytes(), member(second.b, text)...), secret+text, want)
			}
		}
	}
}

// TestNothingIsKept: a Reader that is used again gives nothing of the last payload.
func TestNothingIsKept(t *testing.T) {
	r := &Reader{}
	var secret bytes.Buffer
	w := stdgzip.NewWriter(&secret)
	w.Write(bytes.Repeat([]byte("secret "), 40<<10))
	w.Close()
	for _, distance := range []int{2, 300, history} {
		if _, err := readAll(t, r, secret.Bytes()); err != nil {
			t.Fatal(err)
		}
		s := &bitWriter{}
		c := s.fixedBlock(1)
		s.literals(c, "x").match(c, 258, distance).end(c)
		got, err := readAll(t, r, member(s.b, ""))
		if string(got) != "x" || !errors.Is(err, errDistance) {
			t.Errorf("distance %d: %q, %v", distance, got, err)
		}
	}
}

// TestRoundTrips reads what compressors write.
func TestRoundTrips(t *testing.T) {
	v := rand.New(rand.NewPCG(3, 4))
	random := make([]byte, 300_000)
	for i := range random {
		random[i] = byte(v.Uint32())
	}
	var logs []byte
	for i := range 2000 {
		logs = fmt.Appendf(logs, `{"id":"%x","status":%d,"message":"%s"}`, v.Uint64(), 200+i%7, strings.Repeat("x", v.IntN(80)))
	}
	r := &Reader{}
	for _, text := range [][]byte{nil, []byte("x"), logs[:300], logs, random, make([]byte, 500_000), bytes.Repeat(random[:277], 1000), append(logs, random...)} {
		for _, level := range []int{stdgzip.HuffmanOnly, stdgzip.NoCompression, stdgzip.BestSpeed, stdgzip.DefaultCompression, stdgzip.BestCompression} {
			var b bytes.Buffer
			std, err1 := stdgzip.NewWriterLevel(&b, level)
			other, err2 := gzip.NewWriterLevel(&b, level)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			for _, w := range []io.WriteCloser{std, other} {
				b.Reset()
				w.Write(text)
				w.Close()
				if got, err := readAll(t, r, b.Bytes()); err != nil || !bytes.Equal(got, text) {
					t.Errorf("%T, level %d: %v, %d bytes of %d", w, level, err, len(got), len(text))
				}
				r.Reset(b.Bytes())
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) {
					t.Errorf("%T, level %d, as an io.Reader: %v, %d bytes of %d", w, level, err, len(got), len(text))
				}
			}
		}
	}
}

// small are payloads of every kind of block, in one and two members.
func small() [][]byte {
	v := rand.New(rand.NewPCG(5, 6))
	var all [][]byte
	for _, text := range []string{"", "a", "some text, some more text, and some text again", strings.Repeat("0123456789", 60)} {
		for _, level := range []int{stdgzip.HuffmanOnly, stdgzip.NoCompression, stdgzip.BestCompression} {
			var b bytes.Buffer
			w, err := stdgzip.NewWriterLevel(&b, level)
			if err != nil {
				panic(err)
			}
			w.Write([]byte(text))
			w.Close()
			all = append(all, b.Bytes(), append(b.Bytes(), b.Bytes()...))
		}
	}
	for range 6 {
		stream, text := randomStream(v, 100)
		for len(stream) > 1000 {
			stream, text = randomStream(v, 100)
		}
		all = append(all, member(stream, text))
	}
	return all
}

// TestCut cuts payloads at every byte.
func TestCut(t *testing.T) {
	r := &Reader{}
	for i, p := range small() {
		whole, err := readAll(t, r, p)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(p) {
			text, err := readAll(t, r, p[:n])
			if err == nil && i%2 == 1 && n == len(p)/2 {
				continue // the first of two members
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(whole, text) {
				t.Fatalf("payload %d cut after %d bytes of %d: %d bytes of text, %v", i, n, len(p), len(text), err)
			}
		}
	}
}

// TestFlippedBits: with a bit of a payload wrong, any of a short one, we read what
// another decompressor reads, and fail where it does.
func TestFlippedBits(t *testing.T) {
	j := &judge{}
	for _, p := range small() {
		for i := 0; i < 8*len(p); i += 1 + len(p)/200 {
			p[i/8] ^= 1 << (i % 8)
			j.agree(t, p)
			p[i/8] ^= 1 << (i % 8)
		}
	}
}

// judge compares with klauspost/compress, whose gzip checks what ours does.
type judge struct {
	r   Reader
	z   gzip.Reader
	src bytes.Reader
}

func (j *judge) agree(t testing.TB, p []byte) {
	t.Helper()
	text, err := readAll(t, &j.r, p)
	var want []byte
	j.src.Reset(p)
	wantErr := j.z.Reset(&j.src)
	if wantErr == nil {
		want, wantErr = io.ReadAll(&j.z)
	}
	n := common(text, want)
	if wantErr == nil && err != nil && n == len(want) && j.r.step == inHeader && len(p)-j.r.pos >= 10 && p[j.r.pos+3]&(flagName|flagComment) != 0 {
		return // it takes the end of the payload within a name for the end of the text
	}
	if (err == nil) != (wantErr == nil) || n < min(len(text), len(want)) || err == nil && len(text) != len(want) {
		t.Fatalf("%x: %d bytes, %v; klauspost/compress: %d bytes, %v; %d of them the same", p, len(text), err, len(want), wantErr, n)
	}
}

func TestHeaders(t *testing.T) {
	body := member((&bitWriter{}).stored(1, "text").b, "text")[len(plainHeader):]
	header := func(flags byte, fields string) []byte {
		return append([]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 5, 6}, fields...)
	}
	withCRC := func(h []byte) []byte {
		return binary.LittleEndian.AppendUint16(h, uint16(crc32.ChecksumIEEE(h)))
	}
	for _, c := range []struct {
		name string
		p    []byte
		err  error
	}{
		{"plain", header(0, ""), nil},
		{"text", header(1, ""), nil},
		{"extra", header(flagExtra, "\x03\x00abc"), nil},
		{"extra, empty", header(flagExtra, "\x00\x00"), nil},
		{"name and comment", header(flagName|flagComment, "name\x00comment\x00"), nil},
		{"longest name", header(flagName, strings.Repeat("n", 511)+"\x00"), nil},
		{"name too long", header(flagName, strings.Repeat("n", 512)+"\x00"), ErrHeader},
		{"all", withCRC(header(flagExtra|flagName|flagComment|flagCRC, "\x01\x00ana\x00\x00")), nil},
		{"wrong checksum", header(flagCRC, "ab"), ErrHeader},
		{"reserved flag", header(0x20, ""), ErrHeader},
		{"no gzip", []byte("\x1f\x8c\x08\x00\x00\x00\x00\x00\x00\x00"), ErrHeader},
		{"no deflate", []byte("\x1f\x8b\x07\x00\x00\x00\x00\x00\x00\x00"), ErrHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := append(c.p, body...)
			wants(t, p, "text", c.err)
			(&judge{}).agree(t, p)
			wants(t, append(bytes.Clone(p), p...), "texttext", c.err)
		})
	}
	for name, extra := range map[string]string{"extra longer than the payload": "\xff\xff", "no end of the name": "name"} {
		flag := byte(flagExtra)
		if extra == "name" {
			flag = flagName
		}
		if _, err := readAll(t, &Reader{}, header(flag, extra)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wants(t, append(append(header(0, ""), body...), "garbage after it"...), "", ErrHeader)
	wants(t, append(append(header(0, ""), body...), 0), "", io.ErrUnexpectedEOF)
	wants(t, nil, "", io.ErrUnexpectedEOF)
	for i := range 8 { // checksum and length
		p := append(header(0, ""), body...)
		p[len(p)-1-i]++
		wants(t, p, "", ErrChecksum)
	}
}

// TestCost: a Reader takes no memory beside its own, and that is small.
func TestCost(t *testing.T) {
	if n := unsafe.Sizeof(Reader{}); n > 116<<10 {
		t.Errorf("a Reader has %d bytes", n)
	}
	r := &Reader{}
	for _, p := range small() {
		if n := testing.AllocsPerRun(20, func() {
			r.Reset(p)
			for {
				if _, err := r.Next(0); err == io.EOF {
					return
				} else if err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
