package status

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// plugin carries the fields of fluentd's in_monitor_agent. A chunk there is a
// unit of flushing; weir's nearest thing is a chunk file of the buffer, and its
// count is given. weir stages nothing in memory: what is not delivered counts as
// queued, and stage is 0.
type plugin struct {
	PluginID       string            `json:"plugin_id"`
	PluginCategory string            `json:"plugin_category"`
	Type           string            `json:"type"`
	Config         map[string]string `json:"config,omitempty"`
	OutputPlugin   bool              `json:"output_plugin"`
	// RetryCount is the failed deliveries since start (num_errors in fluentd).
	RetryCount  *uint64 `json:"retry_count"`
	EmitRecords uint64  `json:"emit_records"`
	EmitSize    uint64  `json:"emit_size"`

	*outputFields
}

// outputFields are present for output plugins only.
type outputFields struct {
	BufferQueueLength   int64      `json:"buffer_queue_length"`
	BufferTimekeys      []int64    `json:"buffer_timekeys"` // always empty: chunks have no time
	EmitCount           uint64     `json:"emit_count"`      // messages
	BufferQueueByteSize int64      `json:"buffer_queue_byte_size"`
	BufferStageLength   int64      `json:"buffer_stage_length"`
	BufferStageByteSize int64      `json:"buffer_stage_byte_size"`
	BufferTotalSize     int64      `json:"buffer_total_queued_size"`
	BufferSpaceRatio    float64    `json:"buffer_available_buffer_space_ratios"`
	WriteCount          uint64     `json:"write_count"`
	WriteSecondaryCount uint64     `json:"write_secondary_count"`
	RollbackCount       uint64     `json:"rollback_count"`
	SlowFlushCount      uint64     `json:"slow_flush_count"`
	FlushTimeCount      uint64     `json:"flush_time_count"` // milliseconds
	DropOldestCount     uint64     `json:"drop_oldest_chunk_count"`
	Retry               *retryInfo `json:"retry,omitempty"`
}

// retryInfo is monitor_agent's "retry" object; it is empty while all is well.
type retryInfo struct {
	Start    string `json:"start,omitempty"` // when the failures in a row began
	Steps    int    `json:"steps,omitempty"`
	NextTime string `json:"next_time,omitempty"`
}

// rubyTime is how Ruby writes a Time.
const rubyTime = "2006-01-02 15:04:05 -0700"

// pluginsOf maps a Snapshot to monitor_agent's shape, inputs first.
func pluginsOf(s *Snapshot) []plugin {
	list := []plugin{}
	for _, in := range s.Inputs {
		list = append(list, plugin{
			PluginID: in.ID, PluginCategory: "input", Type: in.Type, Config: in.Config,
			EmitRecords: in.Events, EmitSize: in.Bytes,
		})
	}
	for _, o := range s.Outputs {
		f := &outputFields{
			BufferQueueLength: o.PendingChunks, BufferQueueByteSize: o.PendingBytes, BufferTotalSize: o.PendingBytes,
			BufferTimekeys: []int64{}, BufferSpaceRatio: 100, WriteCount: o.Batches, RollbackCount: o.Retries, Retry: &retryInfo{},
			EmitCount: o.Messages, WriteSecondaryCount: o.SecondaryBatches, SlowFlushCount: o.SlowFlushes,
			FlushTimeCount: uint64(1000 * o.FlushSeconds), DropOldestCount: o.DroppedChunks,
		}
		if o.Capacity > 0 {
			free := 100 * (1 - float64(o.PendingBytes)/float64(o.Capacity))
			f.BufferSpaceRatio = math.Round(math.Max(0, free)*10) / 10
		}
		if o.NextRetry != nil {
			f.Retry = &retryInfo{Steps: o.Step, NextTime: o.NextRetry.Format(rubyTime)}
			if o.FirstFailure != nil {
				f.Retry.Start = o.FirstFailure.Format(rubyTime)
			}
		}
		list = append(list, plugin{
			PluginID: o.ID, PluginCategory: "output", Type: o.Type, Config: o.Config, OutputPlugin: true,
			RetryCount: &o.Retries, EmitRecords: o.DeliveredEvents + pendingEvents(s, o.ID), EmitSize: o.DeliveredBytes + uint64(o.PendingBytes),
			outputFields: f,
		})
	}
	return list
}

// pendingEvents is what the output has still to deliver.
func pendingEvents(s *Snapshot, output string) uint64 {
	for _, b := range s.Balance {
		if b.Output == output {
			return b.Buffered
		}
	}
	return 0
}

// plugins answers /api/plugins.json, and as LTSV /api/plugins and
// /api/plugins.ltsv, with in_monitor_agent's filters: tag, @id or id, @type or
// type; and its options with_config, with_retry and debug.
func (s *Server) plugins(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	first := func(names ...string) string {
		for _, n := range names {
			if v := q.Get(n); v != "" {
				return v
			}
		}
		return ""
	}
	list := pluginsOf(s.snapshot())
	if tag := first("tag"); tag != "" {
		var ids []string
		if s.options.OutputsOf != nil {
			ids = s.options.OutputsOf(tag)
		}
		list = slices.DeleteFunc(list, func(p plugin) bool { return !p.OutputPlugin || !slices.Contains(ids, p.PluginID) })
	} else if id := first("@id", "id"); id != "" {
		list = slices.DeleteFunc(list, func(p plugin) bool { return p.PluginID != id })
	} else if kind := first("@type", "type"); kind != "" {
		list = slices.DeleteFunc(list, func(p plugin) bool { return p.Type != kind })
	}
	withConfig, withRetry := wanted(q.Get("with_config"), !s.options.HideConfig), wanted(q.Get("with_retry"), !s.options.HideRetry)
	for i := range list {
		if !withConfig {
			list[i].Config = nil
		}
		if !withRetry && list[i].outputFields != nil {
			list[i].Retry = nil
		}
	}
	if !strings.HasSuffix(r.URL.Path, ".json") {
		writeLTSV(w, list)
		return
	}
	s.compat(w, struct {
		Plugins []plugin `json:"plugins"`
	}{list}, first("debug") != "")
}

// wanted reads a boolean as fluentd's configuration does.
func wanted(text string, def bool) bool {
	switch text {
	case "true", "yes", "1":
		return true
	case "false", "no", "0":
		return false
	}
	return def
}

// config answers /api/config.json, and as LTSV /api/config and /api/config.ltsv.
func (s *Server) config(w http.ResponseWriter, r *http.Request) {
	c := struct {
		PID        int    `json:"pid"`
		PPID       int    `json:"ppid"`
		Version    string `json:"version"`
		ConfigPath string `json:"config_path,omitempty"`
	}{os.Getpid(), os.Getppid(), s.snapshot().Version, s.options.ConfigPath}
	if !strings.HasSuffix(r.URL.Path, ".json") {
		writeLTSV(w, []any{c})
		return
	}
	s.compat(w, c, r.URL.Query().Get("debug") != "")
}

// compat writes JSON on one line, as in_monitor_agent does unless debug is asked
// for.
func (s *Server) compat(w http.ResponseWriter, v any, pretty bool) {
	if pretty {
		s.json(w, v)
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b)
}

// writeLTSV writes one line for each element, in the order of its JSON fields:
// arrays are joined by commas, objects left out (ltsv.org, in_monitor_agent).
func writeLTSV[T any](w http.ResponseWriter, list []T) {
	var b bytes.Buffer
	for _, v := range list {
		if err := ltsvLine(&b, v); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(b.Bytes())
}

func ltsvLine(b *bytes.Buffer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if _, err := dec.Token(); err != nil { // {
		return err
	}
	separator := ""
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return err
		}
		if _, object := value.(map[string]any); object {
			continue
		}
		fmt.Fprintf(b, "%s%v:%s", separator, key, ltsvValue(value))
		separator = "\t"
	}
	b.WriteByte('\n')
	return nil
}

func ltsvValue(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case []any:
		var parts []string
		for _, e := range v {
			parts = append(parts, ltsvValue(e))
		}
		return strings.Join(parts, ",")
	case string: // a tab or a line's end would be another field
		return strings.NewReplacer("\t", " ", "\n", " ", "\r", " ").Replace(v)
	case bool:
		return strconv.FormatBool(v)
	}
	return fmt.Sprint(v)
}

// fluentdMetrics sends what fluent-plugin-prometheus names so
// (in_prometheus_monitor and in_prometheus_output_monitor), as far as weir has it.
func fluentdMetrics(e emitter, s *Snapshot) {
	for i, p := range pluginsOf(s) {
		if p.outputFields == nil {
			continue
		}
		f, retries := p.outputFields, float64(*p.RetryCount)
		three := []string{"plugin_id", p.PluginID, "plugin_category", p.PluginCategory, "type", p.Type}
		two := []string{"plugin_id", p.PluginID, "type", p.Type}
		e.gauge("fluentd_status_buffer_queue_length", "Current buffer queue length.", float64(f.BufferQueueLength), three...)
		e.gauge("fluentd_status_buffer_total_bytes", "Current total size of queued buffers.", float64(f.BufferTotalSize), three...)
		e.gauge("fluentd_status_retry_count", "Current retry counts.", retries, three...)
		wait := 0.0
		if next := s.Outputs[i-len(s.Inputs)].NextRetry; next != nil {
			wait = math.Max(0, next.Sub(s.Now).Round(time.Millisecond).Seconds())
		}
		for _, m := range []struct {
			name, help string
			value      float64
		}{
			{"buffer_total_bytes", "Current total size of stage and queue buffers.", float64(f.BufferTotalSize)},
			{"buffer_stage_length", "Current length of stage buffers.", 0},
			{"buffer_stage_byte_size", "Current total size of stage buffers.", 0},
			{"buffer_queue_length", "Current length of queue buffers.", float64(f.BufferQueueLength)},
			{"buffer_queue_byte_size", "Current total size of queue buffers.", float64(f.BufferQueueByteSize)},
			{"buffer_available_space_ratio", "Ratio of available space in buffer.", f.BufferSpaceRatio},
			{"retry_count", "Current retry counts.", retries},
			{"num_errors", "Current number of errors.", retries},
			{"emit_records", "Current emit records.", float64(p.EmitRecords)},
			{"emit_count", "Current emit counts.", float64(f.EmitCount)},
			{"write_count", "Current write counts.", float64(f.WriteCount)},
			{"slow_flush_count", "Current slow flush counts.", float64(f.SlowFlushCount)},
			{"flush_time_count", "Total flush time.", float64(f.FlushTimeCount)},
			{"rollback_count", "Current rollback counts.", float64(f.RollbackCount)},
			{"retry_wait", "Current retry wait.", wait},
		} {
			e.gauge("fluentd_output_status_"+m.name, m.help, m.value, two...)
		}
	}
}
