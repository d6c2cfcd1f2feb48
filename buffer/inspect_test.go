package buffer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fill appends n entries of two events each, one commit after the other.
func fill(t *testing.T, b *Buffer, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		o := &outcomeOf{done: make(chan error, 1)}
		e := &Entry{Tag: []byte("t"), ChunkID: fmt.Append(nil, "id", i), Received: time.Unix(int64(i), 0), Events: 2, Payload: [][]byte{bytes.Repeat([]byte{byte(i)}, 3000)}}
		if err := b.Append(t.Context(), e, o); err != nil {
			t.Fatal(err)
		}
		if err := <-o.done; err != nil {
			t.Fatal(err)
		}
	}
}

type outcomeOf struct{ done chan error }

func (o *outcomeOf) Done(err error) { o.done <- err }

// TestInspect reads a directory in all its states: while the buffer is open,
// after files were used again, with a torn tail and with damage.
func TestInspect(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, ChunkLimit: 64 << 10, TotalLimit: 4 << 20, Cursors: []string{"a"}}
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, entries int) *Inspection {
		t.Helper()
		seen := 0
		in, err := Inspect(dir, func(_ Place, e *Entry) error {
			if len(e.Payload[0]) != 3000 {
				return fmt.Errorf("payload of %d bytes", len(e.Payload[0]))
			}
			seen++
			return nil
		})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		sum, damage := uint64(0), 0
		for _, c := range in.Chunks {
			sum += c.Entries
			damage += len(c.Damage)
			if c.Events != 2*c.Entries {
				t.Errorf("%s: %d events in %d entries", what, c.Events, c.Entries)
			}
		}
		if seen != entries || sum != uint64(entries) || damage != 0 {
			t.Errorf("%s: %d entries seen, %d counted, want %d; %d places of damage: %+v", what, seen, sum, entries, damage, in.Chunks)
		}
		return in
	}
	fill(t, b, 0, 40) // three chunks
	in := check("open", 40)
	if in.Holder != fmt.Sprint(os.Getpid()) {
		t.Errorf("held by %q", in.Holder)
	}
	if len(in.Cursors) != 1 || in.Cursors[0].Entries != 40 || in.Cursors[0].Events != 80 {
		t.Errorf("cursors %+v", in.Cursors)
	}
	// Deliver all, and fill files that were used before.
	c, err := b.Cursor("a")
	if err != nil {
		t.Fatal(err)
	}
	for left := 40; left > 0; {
		batch, err := c.Next(t.Context(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		left -= len(batch.Entries)
		if err := c.Commit(batch, nil); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, b, 40, 30)
	before, err := Inspect(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if before.Cursors[0].Entries != 30 {
		t.Errorf("files used again: %d entries left of 30: %+v", before.Cursors[0].Entries, before)
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if h := Holder(dir); h != "" {
		t.Errorf("closed, and held by %q", h)
	}
	bytesOf := func(c ChunkInfo) []byte {
		p, err := os.ReadFile(c.File)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// A torn tail of the newest chunk is no damage.
	newest := before.Chunks[len(before.Chunks)-1]
	p := bytesOf(newest)
	tail := p[BlockSize+newest.Bytes-BlockSize:][:BlockSize]
	tail[100] ^= 1
	if err := os.WriteFile(newest.File, p, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := inspectChunk(newest.File, true, unstated, nil)
	if err != nil || len(info.Damage) != 0 || info.Entries != newest.Entries-1 {
		t.Errorf("torn tail: %+v, %v", info, err)
	}
	// A flipped byte in a sealed one is, and costs one entry.
	sealed := before.Chunks[0]
	p = bytesOf(sealed)
	p[2*BlockSize+2000] ^= 1
	if err := os.WriteFile(sealed.File, p, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err = InspectChunk(sealed.File, nil)
	if err != nil || len(info.Damage) != 1 || info.Damage[0].Offset != 2*BlockSize || info.Entries != sealed.Entries-1 || info.LostEvents != 2 {
		t.Errorf("flipped byte: %+v, %v", info, err)
	}
	// A commit's head that is gone, too.
	clear(p[3*BlockSize : 4*BlockSize])
	if err := os.WriteFile(sealed.File, p, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err = InspectChunk(sealed.File, nil)
	if err != nil || len(info.Damage) != 2 || info.LostEvents != 4 {
		t.Errorf("lost commit: %+v, %v", info, err)
	}
	// Nothing like a chunk at all.
	junk := filepath.Join(dir, "chunk.00000000000000ff.weir.damaged")
	if err := os.WriteFile(junk, bytes.Repeat([]byte("junk"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err = InspectChunk(junk, nil)
	if err != nil || len(info.Damage) != 1 || info.State != StateAside || info.Entries != 0 {
		t.Errorf("junk: %+v, %v", info, err)
	}
}

// TestDamagedLimit: chunks that were moved aside are kept up to a size, the
// newest longest, and those that go are counted.
func TestDamagedLimit(t *testing.T) {
	dir := t.TempDir()
	name := func(seq int) string { return chunkName(dir, uint64(seq)) + damagedSuffix }
	for seq := 1; seq <= 5; seq++ {
		if err := os.WriteFile(name(seq), make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := Open(t.Context(), Options{Dir: dir, Cursors: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	if s := b.Stats(); s.DamagedChunks != 5 || s.DamagedBytes != 500 || s.DroppedDamaged != 0 {
		t.Errorf("at start: %d chunks, %d bytes, %d dropped", s.DamagedChunks, s.DamagedBytes, s.DroppedDamaged)
	}
	b.trimDamaged(250)
	if s := b.Stats(); s.DamagedChunks != 2 || s.DamagedBytes != 200 || s.DroppedDamaged != 3 {
		t.Errorf("beyond the limit: %d chunks, %d bytes, %d dropped", s.DamagedChunks, s.DamagedBytes, s.DroppedDamaged)
	}
	b.trimDamaged(10)
	if s := b.Stats(); s.DamagedChunks != 1 || s.DroppedDamaged != 4 {
		t.Errorf("the newest: %d chunks, %d dropped", s.DamagedChunks, s.DroppedDamaged)
	}
	if _, err := os.Stat(name(5)); err != nil {
		t.Error(err)
	}
}
