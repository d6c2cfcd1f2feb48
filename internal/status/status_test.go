package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap/zaptest"

	"weir/internal/queue"
)

func example() *Snapshot {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	next := start.Add(2 * time.Minute)
	return &Snapshot{
		Version: "1.2.3", PID: 42, Started: start, Now: start.Add(90 * time.Second),
		Listeners: []Listener{{Name: "0.0.0.0:24224", Asked: 2048, Granted: 128,
			LimitedBy: "net.core.somaxconn", Mend: "sysctl -w net.core.somaxconn=2048"}},
		Queues: []queue.Queue{
			{Name: queue.Accept, Instance: "0.0.0.0:24224", Unit: queue.UnitConnections,
				Depth: 64, Capacity: 128, Peak: 129, Dropped: 371},
			{Name: queue.Buffer, Instance: "app.**", Unit: queue.UnitBytes,
				Depth: 1536, Capacity: 64 << 30, Peak: 4 << 20, OldestAge: 2500 * time.Millisecond},
			{Name: queue.Output, Instance: "out\xff\x1b[31m", Unit: queue.UnitBytes, Depth: 1536, Note: "retry 3 in 30s"},
		},
		Outputs: []Output{{ID: "out", Type: "file", Match: "app.**", DeliveredEvents: 90, DeliveredBytes: 900,
			PendingBytes: 1536, PendingChunks: 1, Capacity: 64 << 30, Retries: 3, Step: 3, NextRetry: &next,
			FirstFailure: &start, Batches: 6, Messages: 7, FlushSeconds: 1.5, SlowFlushes: 1, SecondaryBatches: 2, DroppedChunks: 4}},
		Buffers: []Buffer{{Name: "app.**", Path: "/var/lib/weir/app", Bytes: 1536, Limit: 64 << 30, Overflow: "throw_exception", Chunks: 2, Spares: 1, Oldest: 2.5,
			Commits: 70, FailedCommits: 3, Recovered: 5, DroppedChunks: 4, ChunkIDs: 9, Durable: true, Direct: true, ReadAhead: 4096, DiskFree: 3 << 30, DiskSize: 8 << 30}},
		Damaged: []Damaged{{Match: "app.**", Chunks: 2, Bytes: 4096, Limit: 8192, Dropped: 3}},
		Balance: []Balance{{Output: "out", Match: "app.**", Recovered: 5, Received: 100, Delivered: 90, Buffered: 14,
			Dropped: map[string]uint64{"retry_limit": 1}}},
		Traffic: Traffic{
			Messages: map[string]uint64{"packed": 2}, Events: map[string]uint64{"packed": 100},
			Bytes: map[string]uint64{"packed": 5000}, Acks: 2,
			Heartbeats:  map[string]uint64{"udp": 7, "connect": 1},
			Connections: map[string]uint64{"accepted": 3},
			Refused:     map[string]uint64{"broken": 1},
		},
		AckLatency: Histogram{Bounds: []float64{0.001, 0.01}, Counts: []uint64{1, 2}, Count: 2, Sum: 0.005},
		TCPStates:  map[string]int64{"established": 3},
		Kernel:     map[string]uint64{"ListenOverflows": 371},
		Inputs:     []Input{{ID: "in", Type: "forward", Events: 100, Bytes: 5000}},
	}
}

func exampleSenders(by string, limit int) (SenderList, error) {
	if by != "heartbeats" {
		return SenderList{}, errors.New("by is none of heartbeats")
	}
	return SenderList{By: by, Known: 3, Senders: []Sender{{Address: "192.0.2.1", Accepted: 7, HeartbeatsPerSecond: 1,
		Heartbeats: map[string]uint64{"connect": 7}, Features: []string{"packed", "ack"}}}[:min(limit, 1)]}, nil
}

func TestSendersJSON(t *testing.T) {
	for path, want := range map[string]int{
		"/api/senders.json": 200, "/api/senders.json?by=heartbeats&limit=1": 200, "/api/senders.json?by=nothing": 400,
		"/api/senders.json?limit=0": 400, "/api/senders.json?limit=many": 400, "/api/senders.json?limit=10001": 400,
	} {
		code, body := get(t, example(), path)
		if code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
		var list SenderList
		if want == 200 && (json.Unmarshal([]byte(body), &list) != nil || list.Known != 3 || list.Senders[0].Address != "192.0.2.1") {
			t.Errorf("%s: %s", path, body)
		}
	}
	var b bytes.Buffer
	list, err := exampleSenders("heartbeats", 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteSenders(&b, &list); err != nil || !strings.Contains(b.String(), "192.0.2.1  0     7            0.0  connect 7   1.0") {
		t.Errorf("%v:\n%s", err, b.String())
	}
}

func get(t *testing.T, s *Snapshot, path string) (int, string) {
	t.Helper()
	srv := httptest.NewServer(NewServer(func() *Snapshot { return s }, Options{Senders: exampleSenders}, zaptest.NewLogger(t)).Handler())
	defer srv.Close()
	r, err := http.Get(srv.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestMetrics(t *testing.T) {
	code, body := get(t, example(), "/metrics")
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, body)
	}
	for _, want := range []string{
		`weir_buffer_chunks{buffer="app.**"} 2`,
		`weir_buffer_spare_files{buffer="app.**"} 1`,
		`weir_buffer_failed_commits_total{buffer="app.**"} 3`,
		`weir_buffer_dropped_chunks_total{buffer="app.**"} 4`,
		`weir_buffer_chunk_ids{buffer="app.**"} 9`,
		`weir_buffer_direct_io{buffer="app.**"} 1`,
		`weir_buffer_read_ahead_bytes{buffer="app.**"} 4096`,
		`weir_buffer_disk_free_bytes{buffer="app.**"} 3.221225472e+09`,
		`weir_listener_backlog_asked{name="0.0.0.0:24224"} 2048`,
		`weir_listener_backlog_granted{name="0.0.0.0:24224"} 128`,
		`weir_queue_depth{name="0.0.0.0:24224",queue="accept"} 64`,
		`weir_queue_capacity{name="0.0.0.0:24224",queue="accept"} 128`,
		`weir_queue_peak{name="0.0.0.0:24224",queue="accept"} 129`,
		`weir_queue_dropped_total{name="0.0.0.0:24224",queue="accept"} 371`,
		`weir_queue_oldest_seconds{name="app.**",queue="buffer"} 2.5`,
		`weir_received_events_total{mode="packed"} 100`,
		`weir_acks_total 2`,
		`weir_heartbeats_total{transport="udp"} 7`,
		`weir_connections_total{result="accepted"} 3`,
		`weir_ack_seconds_bucket{le="0.001"} 1`,
		`weir_delivered_events_total{output="out"} 90`,
		`weir_balance_events{output="out",part="received"} 100`,
		`weir_unaccounted_events{output="out"} 0`,
		`weir_damaged_dropped_total{match="app.**"} 3`,
		`weir_dropped_events_total{cause="retry_limit"} 1`,
		`weir_tcp_connections{state="established"} 3`,
		`weir_kernel_total{counter="ListenOverflows"} 371`,
		`weir_ready 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestMetricsLint(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{example, false})
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestQueuesJSON(t *testing.T) {
	code, body := get(t, example(), "/api/queues.json")
	if code != http.StatusOK {
		t.Fatalf("status %d", code)
	}
	var s Snapshot
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Queues) != 3 || s.Queues[1].OldestAge != 2500*time.Millisecond || s.Listeners[0].Granted != 128 {
		t.Errorf("read back %+v", s)
	}
}

func TestPluginsJSON(t *testing.T) {
	_, body := get(t, example(), "/api/plugins.json")
	var got struct {
		Plugins []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Plugins) != 2 {
		t.Fatalf("plugins: %s", body)
	}
	in, out := got.Plugins[0], got.Plugins[1]
	if in["plugin_category"] != "input" || in["output_plugin"] != false || in["retry_count"] != nil {
		t.Errorf("input plugin: %v", in)
	}
	if _, ok := in["buffer_queue_length"]; ok {
		t.Errorf("input plugin has buffer fields: %v", in)
	}
	for k, want := range map[string]any{
		"plugin_id": "out", "type": "file", "output_plugin": true, "retry_count": 3.0,
		"buffer_total_queued_size": 1536.0, "buffer_queue_length": 1.0, "emit_records": 104.0,
	} {
		if out[k] != want {
			t.Errorf("output plugin %s = %v, want %v", k, out[k], want)
		}
	}
	retry, ok := out["retry"].(map[string]any)
	if !ok || retry["steps"] != 3.0 {
		t.Errorf("retry = %v", out["retry"])
	}
}

func TestReadyz(t *testing.T) {
	s := example()
	if code, body := get(t, s, "/readyz"); code != http.StatusOK {
		t.Errorf("ready: %d %s", code, body)
	}
	s.Problems = []string{"buffer app.**: no space left on device"}
	if code, body := get(t, s, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "no space left") {
		t.Errorf("not ready: %d %s", code, body)
	}
	if code, _ := get(t, s, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz while not ready: %d", code)
	}
}

func TestUnknownPath(t *testing.T) {
	code, body := get(t, example(), "/nope")
	if code != http.StatusNotFound || !strings.Contains(body, "/metrics") {
		t.Errorf("%d %s", code, body)
	}
}

func TestWriteText(t *testing.T) {
	var b bytes.Buffer
	s := example()
	s.Problems = []string{"buffer app.**: no space left on device"}
	if err := WriteText(&b, s); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	for _, want := range []string{
		"weir 1.2.3, pid 42, up 1m30s, NOT READY\n",
		"  problem: buffer app.**: no space left on device\n",
		"listening on 0.0.0.0:24224, backlog 2048 asked, 128 granted, limited by net.core.somaxconn; to mend it: sysctl -w net.core.somaxconn=2048\n",
		"accept  0.0.0.0:24224    64       128       50%   0       129      371      -\n",
		"buffer  app.**           1.5 KiB  64.0 GiB  0%    0 B     4.0 MiB  0        2.5s\n",
		"retry 3 in 30s",
		"app.**  2       1      70       3       5          O_DIRECT  3.0 GiB of 8.0 GiB  /var/lib/weir/app\n",
		"received: 100 events in 2 messages, 4.9 KiB; 2 acks; 0 sent again; heartbeats: connect 1, udp 7\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "(messages on their way)") {
		t.Errorf("an even sum is marked uneven:\n%s", got)
	}
	if strings.ContainsRune(got, 0x1b) {
		t.Errorf("an escape sequence reaches the terminal: %q", got)
	}
	s.Balance[0].Buffered++
	b.Reset()
	if err := WriteText(&b, s); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "(messages on their way)") {
		t.Errorf("an uneven sum is not marked:\n%s", b.String())
	}
}
