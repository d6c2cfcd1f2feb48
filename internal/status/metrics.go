package status

import (
	"strconv"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// collector turns a Snapshot into metrics at each scrape. It is unchecked (no
// fixed descriptions), since labels follow the configuration.
type collector struct {
	snapshot func() *Snapshot
	fluentd  bool // adds the metrics of fluent-plugin-prometheus
}

// Describe sends nothing: see prometheus.Collector on unchecked collectors.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.snapshot()
	e := emitter{ch}

	e.gauge("weir_build_info", "Always 1; the version is in the label.", 1, "version", s.Version)
	e.gauge("weir_ready", "1 if weir takes and stores messages (as /readyz).", boolFloat(s.Ready()))
	e.gauge("weir_start_time_seconds", "Unix time at which weir started.", float64(s.Started.Unix()))

	for _, l := range s.Listeners {
		e.gauge("weir_listener_backlog_asked", "Backlog given to listen(2).", float64(l.Asked), "name", l.Name)
		e.gauge("weir_listener_backlog_granted", "Backlog that the kernel reports for the listener.", float64(l.Granted), "name", l.Name)
	}
	for _, q := range s.Queues {
		lv := []string{"queue", string(q.Name), "name", q.Instance}
		e.gauge("weir_queue_depth", "Present fill of the queue, in its unit (connections, entries or bytes).", float64(q.Depth), lv...)
		if q.Capacity > 0 {
			e.gauge("weir_queue_capacity", "Limit of the queue, in its unit.", float64(q.Capacity), lv...)
		}
		e.gauge("weir_queue_peak", "Largest fill of the queue since start, in its unit.", float64(q.Peak), lv...)
		e.gauge("weir_queue_peak_minute", "Largest fill of the queue in the last minute, in its unit.", float64(q.PeakMinute), lv...)
		e.counter("weir_queue_dropped_total", "Items lost or refused at the queue.", float64(q.Dropped), lv...)
		e.gauge("weir_queue_oldest_seconds", "Age of the oldest waiting item, 0 if none or unknown.", q.OldestAge.Seconds(), lv...)
	}

	t := s.Traffic
	e.counters("weir_received_messages_total", "Forward messages stored, by mode.", "mode", t.Messages)
	e.counters("weir_received_events_total", "Events of stored messages, by mode.", "mode", t.Events)
	e.counters("weir_received_bytes_total", "Payload bytes of stored messages as sent (compressed where the sender compressed), by mode.", "mode", t.Bytes)
	e.counter("weir_acks_total", "Acks sent.", float64(t.Acks))
	e.counter("weir_duplicate_chunks_total", "Messages whose chunk id was stored before: acked again, not stored again.", float64(t.Duplicates))
	e.counters("weir_heartbeats_total", "Heartbeats, by transport: connect, nil or udp.", "transport", t.Heartbeats)
	e.counters("weir_connections_total", "Connections, by result.", "result", t.Connections)
	e.counters("weir_waits_total", "How often a connection was read no further for a while, by the limit: in_flight, unread_acks, gzip or zstd; poller: quiet connections waited because storing blocked; accept: connections were left in the accept queue for a moment, in a storm of them.", "limit", t.Waits)
	e.counters("weir_refused_messages_total", "Messages neither stored nor acked, by reason.", "reason", t.Refused)
	e.counters("weir_invalid_messages_total", "Messages acked of which a part went to the quarantine, by reason.", "reason", t.Invalid)
	e.counter("weir_invalid_events_total", "Events in the quarantine, as far as they can be told apart.", float64(t.InvalidEvents))
	e.counter("weir_nil_records_total", "Events without a record, which are skipped.", float64(t.NilRecords))
	for _, q := range s.Quarantines {
		e.gauge("weir_quarantine_items", "Messages, or parts of them, in the quarantine.", float64(q.Items), "match", q.Match)
		e.gauge("weir_quarantine_bytes", "Size of the quarantine.", float64(q.Bytes), "match", q.Match)
		e.counter("weir_quarantine_dropped_total", "Items of the quarantine that made room for newer ones.", float64(q.Dropped), "match", q.Match)
	}
	for _, d := range s.Damaged {
		e.gauge("weir_damaged_chunks", "Chunks kept as .damaged; see weir buffer verify and replay.", float64(d.Chunks), "match", d.Match)
		e.gauge("weir_damaged_bytes", "Size of the chunks kept as .damaged.", float64(d.Bytes), "match", d.Match)
		e.counter("weir_damaged_dropped_total", "Damaged chunks that made room for newer ones.", float64(d.Dropped), "match", d.Match)
	}
	e.histogram("weir_ack_seconds", "Time from a whole message read to its ack written.", s.AckLatency)
	for name, h := range s.CommitLatency {
		e.histogram("weir_commit_seconds", "Time of one commit: write and fdatasync.", h, "buffer", name)
	}

	for _, b := range s.Buffers {
		e.gauge("weir_buffer_chunks", "Chunk files with undelivered entries, and the one that is written.", float64(b.Chunks), "buffer", b.Name)
		e.gauge("weir_buffer_spare_files", "Delivered chunk files that wait to be used again.", float64(b.Spares), "buffer", b.Name)
		e.counter("weir_buffer_failed_commits_total", "Commits that did not become durable.", float64(b.FailedCommits), "buffer", b.Name)
		e.counter("weir_buffer_dropped_chunks_total", "Chunks that made room for newer ones (drop_oldest_chunk).", float64(b.DroppedChunks), "buffer", b.Name)
		e.gauge("weir_buffer_chunk_ids", "Chunk ids that are known, so that their resends are not stored again.", float64(b.ChunkIDs), "buffer", b.Name)
		e.gauge("weir_buffer_direct_io", "1 if commits pass the page cache by (O_DIRECT), 0 if the file system refuses that.", boolFloat(b.Direct), "buffer", b.Name)
		e.gauge("weir_buffer_read_ahead_bytes", "Memory in which outputs that are behind read their next batch while one is delivered.", float64(b.ReadAhead), "buffer", b.Name)
		if b.DiskSize > 0 {
			e.gauge("weir_buffer_disk_free_bytes", "Free space of the buffer's file system.", float64(b.DiskFree), "buffer", b.Name)
			e.gauge("weir_buffer_disk_size_bytes", "Size of the buffer's file system.", float64(b.DiskSize), "buffer", b.Name)
		}
	}

	dropped := map[string]uint64{}
	for _, b := range s.Balance {
		for cause, n := range b.Dropped {
			dropped[cause] += n
		}
		for part, n := range map[string]uint64{"recovered": b.Recovered, "received": b.Received, "delivered": b.Delivered, "buffered": b.Buffered, "dropped": b.DroppedTotal()} {
			e.gauge("weir_balance_events", "Events by where they are: recovered + received = delivered + buffered + dropped at every quiet moment.", float64(n), "output", b.Output, "part", part)
		}
		e.gauge("weir_unaccounted_events", "recovered + received - delivered - buffered - dropped: messages on their way, 0 at every quiet moment.", float64(b.Unaccounted()), "output", b.Output)
		e.gauge("weir_buffered_events", "Events that the output has still to deliver.", float64(b.Buffered), "output", b.Output)
		e.gauge("weir_recovered_events", "Events found undelivered in the buffer at start.", float64(b.Recovered), "output", b.Output)
	}
	e.counters("weir_dropped_events_total", "Events lost, by cause.", "cause", dropped)
	for _, o := range s.Outputs {
		e.counter("weir_delivered_events_total", "Events delivered by the output.", float64(o.DeliveredEvents), "output", o.ID)
		e.counter("weir_delivered_bytes_total", "Stored bytes delivered by the output.", float64(o.DeliveredBytes), "output", o.ID)
		e.counter("weir_output_retries_total", "Failed deliveries of the output.", float64(o.Retries), "output", o.ID)
		next := 0.0
		if o.NextRetry != nil {
			next = float64(o.NextRetry.UnixNano()) / 1e9
		}
		e.gauge("weir_output_next_retry_time_seconds", "Unix time of the next attempt, 0 if the output does not wait for one.", next, "output", o.ID)
	}
	for _, a := range s.Alerts {
		if a.Until == nil {
			e.gauge("weir_alert", "1 while the alert is on; the series ends when it is over.", 1, "name", a.Name, "subject", a.Subject)
		}
	}
	e.gauge("weir_senders_known", "Addresses in the tables of senders.", float64(s.SendersKnown))
	for state, n := range s.TCPStates {
		e.gauge("weir_tcp_connections", "Connections of weir's ports in the kernel, by TCP state.", float64(n), "state", state)
	}
	if c.fluentd {
		fluentdMetrics(e, s)
	}
	e.counters("weir_kernel_total", "Counters of the network namespace, all its listeners together (/proc/net/netstat).", "counter", s.Kernel)
}

// emitter sends constant metrics; labels are given as key, value, key, value.
type emitter struct{ ch chan<- prometheus.Metric }

func (e emitter) send(kind prometheus.ValueType, name, help string, v float64, kv []string) {
	keys, values := split(kv)
	e.ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, keys, nil), kind, v, values...)
}

func (e emitter) gauge(name, help string, v float64, kv ...string) {
	e.send(prometheus.GaugeValue, name, help, v, kv)
}

func (e emitter) counter(name, help string, v float64, kv ...string) {
	e.send(prometheus.CounterValue, name, help, v, kv)
}

func (e emitter) counters(name, help, key string, m map[string]uint64) {
	for k, v := range m {
		e.counter(name, help, float64(v), key, k)
	}
}

func (e emitter) histogram(name, help string, h Histogram, kv ...string) {
	keys, values := split(kv)
	buckets := make(map[float64]uint64, len(h.Bounds))
	for i, b := range h.Bounds {
		buckets[b] = h.Counts[i]
	}
	e.ch <- prometheus.MustNewConstHistogram(prometheus.NewDesc(name, help, keys, nil), h.Count, h.Sum, buckets, values...)
}

func split(kv []string) (keys, values []string) {
	for i := 0; i+1 < len(kv); i += 2 {
		keys = append(keys, kv[i])
		values = append(values, label(kv[i+1]))
	}
	return keys, values
}

// label quotes a value that is not valid UTF-8: Prometheus refuses such a value
// and would fail the whole scrape.
func label(s string) string {
	if !utf8.ValidString(s) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

func boolFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
