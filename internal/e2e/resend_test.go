package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestResentChunks sends chunks again, on the same connection and on others,
// before and after weir is killed: each is acked again and its events are in the
// output once (P2).
func TestResentChunks(t *testing.T) {
	const chunks = 20
	o := options{dir: t.TempDir(), addr: freeAddr(t)}
	send := func(w *weir) {
		t.Helper()
		c, err := dial(w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.conn.Close()
		for n := range chunks {
			if err := c.send("app.web", fmt.Sprintf("chunk-%d", n), n*10, n*10+10); err != nil {
				t.Fatalf("chunk %d: %v", n, err)
			}
		}
	}
	w := start(t, o)
	send(w)
	send(w)
	if got := w.snapshot().Traffic; got.Duplicates != chunks || got.Acks != 2*chunks || got.Events["packed"] != chunks*10 {
		t.Errorf("%+v, want %d duplicates, twice the acks, and the events once", got, chunks)
	}
	w.kill()
	w = start(t, o)
	send(w)
	waitFor(t, patience, func() error { // the table of senders is sampled
		got := w.snapshot()
		if got.Traffic.Duplicates != chunks || len(got.Senders) == 0 || got.Senders[0].Resends != chunks {
			return fmt.Errorf("after the kill: %d duplicates, senders %+v", got.Traffic.Duplicates, got.Senders)
		}
		return nil
	})
	seen := map[int]int{}
	for _, e := range w.delivered() {
		seen[int(e.record["n"].(float64))]++
	}
	for n := range chunks * 10 {
		if seen[n] != 1 {
			t.Errorf("event %d is in the output %d times", n, seen[n])
		}
	}
	w.stop()
}

// TestResentRest sends a chunk again of which a part went to quarantine, and one
// that went there as a whole, also after weir is killed: each is acked, and
// neither its events nor its part in quarantine are there twice.
func TestResentRest(t *testing.T) {
	o := options{dir: t.TempDir(), addr: freeAddr(t)}
	bad := pack([]any{"noon", dict{"a": 1}})
	chunks := map[string][]byte{"part": append(events(2), bad...), "whole": bad}
	items := func() int {
		t.Helper()
		rejected, err := filepath.Glob(filepath.Join(o.dir, "buffer", "rejected", "*.rejected"))
		if err != nil {
			t.Fatal(err)
		}
		return len(rejected)
	}
	w := start(t, o)
	for round := range 3 {
		if round == 2 {
			w.kill()
			w = start(t, o)
		}
		for id, p := range chunks {
			ack, err := w.assault(hostile{stream: pack([]any{"app", p, dict{"chunk": id}})})
			if err != nil || !strings.Contains(ack, id) {
				t.Fatalf("round %d, chunk %s: answer %q, %v; want its ack", round, id, ack, err)
			}
		}
		if n := items(); n != len(chunks) {
			t.Fatalf("round %d: %d items in quarantine, want %d", round, n, len(chunks))
		}
	}
	waitFor(t, patience, func() error {
		if n := len(w.delivered()); n != 2 {
			return fmt.Errorf("%d events delivered, want 2", n)
		}
		return nil
	})
	if got := w.snapshot().Traffic; got.Duplicates != uint64(len(chunks)) || got.Events["packed"] != 0 {
		t.Errorf("%+v, want %d duplicates and nothing stored after the kill", got, len(chunks))
	}
	w.stop()
}
