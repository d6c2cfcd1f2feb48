package status

import "math"

// pluginList is the answer of fluentd's monitor_agent at /api/plugins.json.
type pluginList struct {
	Plugins []plugin `json:"plugins"`
}

// plugin carries monitor_agent's fields. A chunk there is a unit of flushing;
// weir's nearest thing is a chunk file of the buffer, and its count is given.
type plugin struct {
	PluginID       string            `json:"plugin_id"`
	PluginCategory string            `json:"plugin_category"`
	Type           string            `json:"type"`
	Config         map[string]string `json:"config"`
	OutputPlugin   bool              `json:"output_plugin"`
	RetryCount     *uint64           `json:"retry_count"`
	EmitRecords    uint64            `json:"emit_records"`
	EmitSize       uint64            `json:"emit_size"`

	*outputFields
}

// outputFields are present for output plugins only.
type outputFields struct {
	BufferQueueLength   int64      `json:"buffer_queue_length"`
	BufferQueueByteSize int64      `json:"buffer_queue_byte_size"`
	BufferStageLength   int64      `json:"buffer_stage_length"`
	BufferStageByteSize int64      `json:"buffer_stage_byte_size"`
	BufferTotalSize     int64      `json:"buffer_total_queued_size"`
	BufferSpaceRatio    float64    `json:"buffer_available_buffer_space_ratios"`
	WriteCount          uint64     `json:"write_count"`
	RollbackCount       uint64     `json:"rollback_count"`
	Retry               *retryInfo `json:"retry"`
}

// retryInfo is monitor_agent's "retry" object; it is empty while all is well.
type retryInfo struct {
	Steps    int    `json:"steps,omitempty"`
	NextTime string `json:"next_time,omitempty"`
}

// plugins maps a Snapshot to monitor_agent's shape.
func plugins(s *Snapshot) pluginList {
	var list pluginList
	for _, in := range s.Inputs {
		list.Plugins = append(list.Plugins, plugin{
			PluginID: in.ID, PluginCategory: "input", Type: in.Type, Config: in.Config,
			EmitRecords: in.Events, EmitSize: in.Bytes,
		})
	}
	for _, o := range s.Outputs {
		retries := uint64(o.Step)
		f := &outputFields{
			BufferQueueLength:   o.PendingChunks,
			BufferQueueByteSize: o.PendingBytes,
			BufferTotalSize:     o.PendingBytes,
			BufferSpaceRatio:    100,
			WriteCount:          o.Batches,
			RollbackCount:       o.Retries,
			Retry:               &retryInfo{},
		}
		if o.Capacity > 0 {
			free := 100 * (1 - float64(o.PendingBytes)/float64(o.Capacity))
			f.BufferSpaceRatio = math.Round(math.Max(0, free)*10) / 10
		}
		if o.NextRetry != nil {
			f.Retry = &retryInfo{Steps: o.Step, NextTime: o.NextRetry.Format("2006-01-02 15:04:05 -0700")}
		}
		list.Plugins = append(list.Plugins, plugin{
			PluginID: o.ID, PluginCategory: "output", Type: o.Type, Config: o.Config, OutputPlugin: true,
			RetryCount: &retries, EmitRecords: o.DeliveredEvents + pendingEvents(s, o.ID), EmitSize: o.DeliveredBytes + uint64(o.PendingBytes),
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
