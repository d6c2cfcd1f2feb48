package e2e

import (
	"fmt"
	"testing"
)

// TestKillUnderAckedLoad kills weir ten times while acks flow. What was acked
// must be in the output after the last restart (P3), and since every event is
// sent once it must be there once (P4, file output).
func TestKillUnderAckedLoad(t *testing.T) {
	const kills, senders = 10, 4
	o := options{dir: t.TempDir(), addr: freeAddr(t)}
	load := &ackedLoad{acked: map[int]bool{}}
	for k := range kills {
		w := start(t, o)
		stop := make(chan struct{})
		wait := load.run(t, w.addr, senders, stop)
		before := load.count()
		// Kill in the midst of it, after a different number of acks each time.
		waitFor(t, patience, func() error {
			if got := load.count() - before; got < (k+1)*5*eventsPerMessage {
				return fmt.Errorf("%d events acked in round %d", got, k)
			}
			return nil
		})
		w.kill()
		close(stop)
		wait()
	}
	w := start(t, o)
	seen := map[int]int{}
	for _, e := range w.delivered() {
		seen[int(e.record["n"].(float64))]++
	}
	lost := 0
	for n := range load.acked {
		if seen[n] == 0 {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acked events lost", lost, len(load.acked))
	}
	for n, times := range seen {
		if times > 1 {
			t.Errorf("event %d is in the output %d times", n, times)
		}
	}
	t.Logf("%d events acked over %d kills, %d in the output", len(load.acked), kills, len(seen))
	w.stop()
}
