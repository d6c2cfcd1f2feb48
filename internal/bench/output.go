package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"weir/internal/load"
	"weir/internal/status"
)

// fileOutput writes JSON lines; a batch is durable (fdatasync) before the
// buffer's cursor moves on.
const fileOutput = "  @type file\n  path out/${tag}\n  append true\n  <format>\n    @type json\n  </format>\n"

// outputEvents is how many events a round of the output case sends: about half
// a GB, so that the end of the last batch weighs little.
const outputEvents = 2_000_000

// output measures receipt and output together, until the last event is
// delivered, beside the same with the output null: the difference is what
// reading the buffer, formatting, writing and fdatasync cost.
func (b *bench) output(ctx context.Context) error {
	cost := map[string]float64{}
	for _, kind := range []string{"weir", "weir-file"} {
		var all []float64
		for round := range b.rounds {
			if err := b.begin(ctx); err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%s output of %s, round %d of %d\n", time.Now().Format(time.TimeOnly), kind, round+1, b.rounds)
			micros, err := b.deliver(ctx, kind)
			if err != nil {
				return fmt.Errorf("output of %s: %w", kind, err)
			}
			all = append(all, micros)
		}
		slices.Sort(all)
		cost[kind] = all[len(all)/2]
	}
	null, file := cost["weir"], cost["weir-file"]
	fmt.Printf("receipt and output of %d events, packed: null %.2f CPU µs an event; JSON lines in files %.2f, %.0f events a core-second; the output alone %.2f, %.0f events a core-second\n",
		outputEvents, null, file, 1e6/file, file-null, 1e6/(file-null))
	return nil
}

// deliver sends outputEvents and waits until all are delivered. It returns CPU
// microseconds an event.
func (b *bench) deliver(ctx context.Context, kind string) (float64, error) {
	s, err := b.start(ctx, kind)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	pid := strconv.Itoa(s.cmd.Process.Pid)
	before, err := load.CPUSeconds(pid)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*caseGrace)
	defer cancel()
	o := b.options("packed", 4)
	o.Address, o.Duration, o.Count = s.addr, 0, outputEvents
	rep, err := load.Run(ctx, o)
	if err != nil {
		return 0, err
	}
	for {
		n, err := s.delivered(ctx)
		if err != nil {
			return 0, err
		}
		if n >= rep.Events {
			break
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%d of %d events delivered: %w", n, rep.Events, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	after, err := load.CPUSeconds(pid)
	return (after - before) / float64(rep.Events) * 1e6, err
}

// delivered asks weir how many events its output has delivered.
func (s *server) delivered(ctx context.Context) (uint64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.monitor+"/api/queues.json", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var snap status.Snapshot
	if err := json.NewDecoder(resp.Body).Decode(&snap); err != nil {
		return 0, fmt.Errorf("queues.json: %w", err)
	}
	n := uint64(0)
	for _, o := range snap.Outputs {
		n += o.DeliveredEvents
	}
	return n, nil
}
