package e2e

import (
	"fmt"
	"sync"
	"testing"
)

// TestReconnectStorm: weir is killed under two thousand senders, which come back
// all at once; each gets its ack, and every event is there once.
func TestReconnectStorm(t *testing.T) {
	const senders = 2000
	w := start(t, options{})
	conns := openMany(t, w.addr, senders)
	waitFor(t, patience, func() error {
		for _, q := range w.snapshot().Queues {
			if q.Name == "connections" && q.Depth < senders {
				return fmt.Errorf("%d connections", q.Depth)
			}
		}
		return nil
	})
	w.kill()
	for _, c := range conns {
		c.Close()
	}
	w = start(t, options{dir: w.dir, addr: w.addr})
	var wg sync.WaitGroup
	errs := make(chan error, senders)
	for i := range senders {
		wg.Go(func() {
			c, err := dial(w.addr)
			if err == nil {
				err = c.send("storm", fmt.Sprintf("storm-%d", i), i, i+1)
				c.conn.Close()
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	failed := 0
	for err := range errs {
		if err != nil {
			if failed++; failed == 1 {
				t.Error(err)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d senders were not served", failed, senders)
	}
	requireAll(t, w.delivered(), "storm", senders)
	w.stop()
}
