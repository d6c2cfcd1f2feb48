package queue_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"weir/internal/queue"
)

func TestJSONRoundTrip(t *testing.T) {
	in := queue.Queue{
		Name: queue.Accept, Instance: "0.0.0.0:24224", Unit: queue.UnitConnections,
		Depth: 129, Capacity: 128, Peak: 129, PeakMinute: 12, Dropped: 371,
		DroppedBy: map[string]uint64{"overflow": 371}, OldestAge: 1500 * time.Millisecond,
		Note: "asked 2048, granted 128",
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	if got := fields["oldest_seconds"]; got != 1.5 {
		t.Errorf("oldest_seconds = %v, want 1.5 in %s", got, b)
	}
	if got := fields["queue"]; got != "accept" {
		t.Errorf("queue = %v, want accept in %s", got, b)
	}
	var out queue.Queue
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Errorf("round trip:\n in %+v\nout %+v", in, out)
	}
}

func TestFill(t *testing.T) {
	for _, c := range []struct {
		q    queue.Queue
		want float64
	}{
		{queue.Queue{Depth: 5}, 0},
		{queue.Queue{Depth: 5, Capacity: 10}, 0.5},
		{queue.Queue{Depth: 129, Capacity: 128}, 129.0 / 128},
	} {
		if got := c.q.Fill(); got != c.want {
			t.Errorf("Fill(%d of %d) = %v, want %v", c.q.Depth, c.q.Capacity, got, c.want)
		}
	}
}
