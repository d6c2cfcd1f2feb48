package config

// kind is the type of a parameter's value.
type kind uint8

const (
	kindString kind = iota
	kindBool
	kindInt
	kindSize   // bytes, with k, m, g, t
	kindTime   // with s, m, h, d
	kindEnum   // one of values
	kindSecret // a string that is never shown
	kindMode   // octal file permission
	kindFloat
)

// status says what weir does with a parameter.
type status uint8

const (
	works   status = iota
	ignored        // a warning: it means nothing to weir
	later          // an error: it would mean something, and weir does not do it
)

// spec describes one parameter.
type spec struct {
	name     string
	kind     kind
	def      string // as it would be written; "" for none
	status   status
	required bool
	values   []string // of kindEnum
	doc      string
}

// section describes a section and what may stand in it.
type section struct {
	name     string
	params   []spec
	children []*section
	// types maps @type to what is added for it; nil if there is no @type.
	types map[string]*section
	// defaultType stands for a missing @type; "" makes it required.
	defaultType string
	// arg says what the section's argument is, "" for none.
	arg string
	// single: at most one of it in its parent.
	single bool
}

// common parameters of every plugin.
func common() []spec {
	return []spec{
		{name: "@id", doc: "name of the plugin in metrics and in the buffer's directory"},
		{name: "@log_level", status: ignored, doc: "weir has one log level, log_level in <system>"},
	}
}

func with(groups ...[]spec) (all []spec) {
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

// schema is everything that weir's configuration may hold.
func schema() *section {
	return &section{name: "ROOT", children: []*section{
		systemSection(),
		sourceSection(),
		matchSection(),
		{name: "label", arg: "the name, such as @ACCESS", children: []*section{matchSection()}},
	}}
}

func systemSection() *section {
	return &section{name: "system", single: true, params: []spec{
		{name: "log_level", kind: kindEnum, def: "info", values: []string{"trace", "debug", "info", "warn", "error", "fatal"}, doc: "what is logged"},
		{name: "root_dir", def: "./weir-data", doc: "where buffers without a path are; $STATE_DIRECTORY if that is set"},
		{name: "drain_timeout", kind: kindTime, def: "30s", doc: "how long SIGTERM waits for senders and outputs"},
		{name: "workers", kind: kindInt, status: ignored, doc: "weir is one process on all cores"},
		{name: "process_name", status: ignored},
		{name: "suppress_repeated_stacktrace", kind: kindBool, status: ignored},
		{name: "emit_error_log_interval", kind: kindTime, status: ignored},
		{name: "ignore_repeated_log_interval", kind: kindTime, status: ignored},
		{name: "suppress_config_dump", kind: kindBool, status: ignored},
		{name: "without_source", kind: kindBool, status: ignored},
		{name: "enable_msgpack_time_support", kind: kindBool, status: ignored},
	}}
}

func sourceSection() *section {
	return &section{name: "source", params: common(), types: map[string]*section{
		"forward": {params: with([]spec{
			{name: "@label", doc: "the <label> that takes the messages"},
			{name: "port", kind: kindInt, def: "24224", doc: "TCP port, and UDP for heartbeats"},
			{name: "bind", def: "0.0.0.0", doc: "addresses, separated by commas; unix:/path for a unix socket"},
			{name: "backlog", kind: kindInt, def: "0", doc: "accept queue asked of the kernel; 0 for what it allows now"},
			{name: "on_backlog_mismatch", kind: kindEnum, def: "error", values: []string{"error", "warn"}, doc: "what to do if the kernel grants less"},
			{name: "max_connections", kind: kindInt, def: "65536", doc: "connections open at once"},
			{name: "memory_limit", kind: kindSize, def: "1g", doc: "bytes read and not yet committed, over all connections"},
			{name: "stall_timeout", kind: kindTime, def: "60s", doc: "for the next bytes of a message that has begun"},
			{name: "min_rate", kind: kindSize, def: "1k", doc: "bytes a second of a message that has begun, beside one stall_timeout; 0 for none"},
			{name: "nesting_limit", kind: kindInt, def: "128", doc: "how deep msgpack and JSON may nest"},
			{name: "handshake_timeout", kind: kindTime, def: "10s", doc: "for the whole handshake"},
			{name: "idle_timeout", kind: kindTime, def: "0s", doc: "for a connection without a message; 0 for none"},
			{name: "linger_timeout", kind: kindInt, doc: "SO_LINGER of connections, in seconds; weir leaves it off unless it is set, since 0 may cut off acks"},
			{name: "blocking_timeout", kind: kindTime, status: ignored, doc: "weir never blocks on a read"},
			{name: "deny_keepalive", kind: kindBool, def: "false", doc: "close each connection after a message"},
			{name: "send_keepalive_packet", kind: kindBool, def: "true", doc: "SO_KEEPALIVE on connections"},
			{name: "chunk_size_warn_limit", kind: kindSize, doc: "log messages that are larger"},
			{name: "chunk_size_limit", kind: kindSize, def: "256m", doc: "largest message"},
			{name: "decompression_size_limit", kind: kindSize, def: "256m", doc: "largest payload once decompressed"},
			{name: "decompression_ratio_limit", kind: kindInt, def: "500", doc: "how many times its size a payload may decompress to, beyond 1 MiB"},
			{name: "source_address_key", doc: "field that gets the sender's address, in every record"},
			{name: "source_hostname_key", doc: "field that gets the sender's name, as the resolver tells it"},
			{name: "resolve_hostname", kind: kindBool, doc: "names are resolved if source_hostname_key is given, and only then"},
			{name: "health_grace", kind: kindTime, def: "10s", doc: "how long storing may fail before UDP heartbeats go unanswered and /readyz fails"},
			{name: "skip_invalid_event", kind: kindBool, def: "true", doc: "store the valid events of a message that has others; false makes the message invalid as a whole"},
			{name: "on_invalid", kind: kindEnum, def: "quarantine", values: []string{"quarantine", "refuse"}, doc: "what can never be taken is set aside and acked, or refused"},
			{name: "tag", doc: "replaces the tag of every message"},
			{name: "add_tag_prefix", doc: "put before every tag, with a dot"},
			{name: "max_connections_per_client", kind: kindInt, def: "0", doc: "connections that one address may have open; 0 for no limit"},
			{name: "proxy_protocol", kind: kindEnum, def: "off", values: []string{"off", "on"}, doc: "connections from proxy_protocol_from begin with a PROXY header, version 1 or 2"},
			{name: "proxy_protocol_from", doc: "networks of the load balancers, such as 10.0.0.0/8,192.0.2.1"},
			{name: "listeners", kind: kindInt, def: "1", doc: "sockets on each address (SO_REUSEPORT), each with an accept queue of its own"},
			{name: "max_connection_age", kind: kindTime, def: "0s", doc: "close older connections between two messages, so that senders find new servers; 0 for never"},
		}), children: []*section{
			transportSection(),
			{name: "security", single: true, params: []spec{
				{name: "self_hostname", required: true, doc: "this server's name in the handshake"},
				{name: "shared_key", kind: kindSecret, required: true, doc: "the secret of both sides"},
				{name: "user_auth", kind: kindBool, def: "false", doc: "ask for a user name and a password"},
				{name: "allow_anonymous_source", kind: kindBool, def: "true", doc: "take senders that no <client> names"},
			}, children: []*section{
				{name: "client", params: []spec{
					{name: "host", doc: "address or name of the sender"},
					{name: "network", doc: "such as 192.0.2.0/24"},
					{name: "shared_key", kind: kindSecret, doc: "instead of that of <security>"},
					{name: "users", doc: "those that may come from here, such as alice,bob; all without it"},
				}},
				{name: "user", params: []spec{
					{name: "username", required: true},
					{name: "password", kind: kindSecret, required: true},
				}},
			}},
		}},
		"monitor_agent": {params: []spec{
			{name: "bind", def: "127.0.0.1", doc: "address of the status endpoint"},
			{name: "port", kind: kindInt, def: "24220", doc: "TCP port of the status endpoint"},
			{name: "tag", status: later, doc: "weir makes no events of its own, so that every event stored is one that was received: read /metrics or /api/plugins.json instead"},
			{name: "emit_interval", kind: kindTime, status: later, doc: "it belongs to tag, and weir makes no events of its own: take the line out"},
			{name: "include_config", kind: kindBool, def: "true", doc: "the plugins' configuration in plugins.json, secrets masked"},
			{name: "include_retry", kind: kindBool, def: "true", doc: "the outputs' retries in plugins.json"},
			{name: "include_debug_info", kind: kindBool, status: ignored, doc: "weir has no instance variables to show"},
			{name: "username", doc: "with password: who may read the status, /healthz and /readyz excepted"},
			{name: "password", kind: kindSecret},
			{name: "fluentd_metrics", kind: kindBool, def: "false", doc: "also the metrics of fluent-plugin-prometheus, fluentd_status_* and fluentd_output_status_*"},
		}, children: []*section{transportSection()}},
	}}
}

// transportSection is <transport tls>.
func transportSection() *section {
	versions := []string{"TLS1_2", "TLSv1_2", "TLS1_3", "TLSv1_3"}
	return &section{name: "transport", single: true, arg: "tls", params: []spec{
		{name: "cert_path", doc: "PEM file with the certificate and its chain"},
		{name: "private_key_path", doc: "PEM file with its key"},
		{name: "private_key_passphrase", kind: kindSecret, doc: "of an encrypted key"},
		{name: "ca_path", doc: "PEM file with the CAs of clients"},
		{name: "client_cert_auth", kind: kindBool, def: "false", doc: "clients must have a certificate of ca_path"},
		{name: "ca_cert_path", doc: "a CA that signs a certificate made at start"},
		{name: "ca_private_key_path", doc: "its key"},
		{name: "ca_private_key_passphrase", kind: kindSecret},
		{name: "insecure", kind: kindBool, def: "false", doc: "make a certificate that nobody has signed"},
		{name: "version", kind: kindEnum, values: versions, doc: "this version alone"},
		{name: "min_version", kind: kindEnum, def: "TLS1_2", values: versions},
		{name: "max_version", kind: kindEnum, def: "TLS1_3", values: versions},
		{name: "ciphers", def: "ALL:!aNULL:!eNULL:!SSLv2", doc: "of TLS 1.2, by their OpenSSL or IANA names; those of 1.3 are fixed"},
		{name: "cert_verifier", status: later, doc: "it names Ruby code, and what it would refuse weir must not let in: use ca_path with client_cert_auth"},
		{name: "ensure_fips", kind: kindBool, def: "false", doc: "start only in FIPS 140-3 mode (GODEBUG=fips140=on)"},
		{name: "receive_buffer_size", kind: kindSize, status: ignored, doc: "the kernel sizes the buffer of each connection by itself (net.ipv4.tcp_rmem)"},
		{name: "linger_timeout", kind: kindInt, doc: "as linger_timeout of the source"},
		{name: "generate_private_key_length", kind: kindInt, status: ignored, doc: "weir makes keys on the curve P-256"},
		{name: "generate_cert_country", status: ignored}, {name: "generate_cert_state", status: ignored}, {name: "generate_cert_locality", status: ignored},
		{name: "generate_cert_common_name", doc: "the name in a certificate that is made; self_hostname or the host's without it"},
		{name: "generate_cert_digest", kind: kindEnum, status: ignored, values: []string{"sha1", "sha256", "sha384", "sha512"}, doc: "weir signs with SHA-256"},
		{name: "generate_cert_expiration", kind: kindTime, status: ignored, doc: "10 years"},
	}}
}

func matchSection() *section {
	types := outputTypes()
	store := &section{name: "store", params: common(), types: outputTypes(), arg: "ignore_error"}
	types["copy"] = &section{children: []*section{store, bufferSection(true, false)}}
	for name, t := range types {
		if name != "copy" {
			t.children = append(t.children, bufferSection(true, true), secondarySection())
		}
	}
	for _, t := range store.types {
		t.children = append(t.children, bufferSection(false, true), secondarySection())
	}
	return &section{name: "match", arg: "a pattern of tags, such as app.**", params: common(), types: types}
}

func secondarySection() *section {
	return &section{name: "secondary", single: true, params: common(), types: outputTypes()}
}

func outputTypes() map[string]*section {
	inject := &section{name: "inject", single: true, params: []spec{
		{name: "tag_key"}, {name: "time_key"}, {name: "hostname_key"}, {name: "hostname"},
		{name: "time_type", kind: kindEnum, def: "float", values: []string{"float", "unixtime", "unixtime_millis", "unixtime_micros", "unixtime_nanos", "string"}},
		{name: "time_format"}, {name: "utc", kind: kindBool, def: "false"}, {name: "localtime", kind: kindBool, def: "true"}, {name: "timezone"},
	}}
	return map[string]*section{
		"file": {params: []spec{
			{name: "path", required: true, doc: "with ${tag}, ${tag[N]} and %Y%m%d…; without a time, that of timekey is appended"},
			{name: "append", kind: kindBool, def: "false", doc: "append to files that are there"},
			{name: "add_path_suffix", kind: kindBool, def: "true"},
			{name: "path_suffix", def: ".log"},
			{name: "compress", kind: kindEnum, def: "text", values: []string{"text", "gzip", "gz"}},
			{name: "recompress", kind: kindBool, status: ignored, doc: "weir compresses once"},
			{name: "symlink_path", status: later},
			{name: "dir_permission", kind: kindMode, def: "0755"},
			{name: "file_permission", kind: kindMode, def: "0644"},
			{name: "format", kind: kindEnum, values: formats, doc: "as @type in <format>"},
			{name: "utc", kind: kindBool, def: "false"}, {name: "localtime", kind: kindBool, def: "true"}, {name: "timezone"},
		}, children: []*section{formatSection("out_file"), inject}},
		"stdout": {children: []*section{formatSection("stdout"), inject}},
		"null":   {},
	}
}

var formats = []string{"out_file", "json", "msgpack", "single_value", "stdout"}

func formatSection(def string) *section {
	return &section{name: "format", single: true, defaultType: def, types: map[string]*section{
		"out_file": {params: append(timeParams(),
			spec{name: "output_time", kind: kindBool, def: "true"},
			spec{name: "output_tag", kind: kindBool, def: "true"},
			spec{name: "delimiter", kind: kindEnum, def: "TAB", values: []string{"TAB", "SPACE", "COMMA", "SOH"}})},
		"json":    {},
		"msgpack": {},
		"single_value": {params: []spec{
			{name: "message_key", def: "message"},
			{name: "add_newline", kind: kindBool, def: "true"},
		}},
		"stdout": {params: timeParams()},
	}}
}

func timeParams() []spec {
	return []spec{
		{name: "time_format", doc: "strftime(3); ISO 8601 without it"},
		{name: "utc", kind: kindBool, def: "false"}, {name: "localtime", kind: kindBool, def: "true"}, {name: "timezone"},
	}
}

// bufferSection has the parameters of storage, of delivery, or both: in a copy
// the former belong to the match and the latter to its stores.
func bufferSection(storage, delivery bool) *section {
	s := &section{name: "buffer", single: true, arg: "chunk keys, such as tag, time"}
	if storage {
		s.params = append(s.params,
			spec{name: "@type", kind: kindEnum, def: "file", values: []string{"file", "memory"}, doc: "weir buffers in files"},
			spec{name: "path", doc: "the directory of the buffer; root_dir/buffer/ID without it"},
			spec{name: "chunk_limit_size", kind: kindSize, def: "64m", doc: "size at which a chunk is closed"},
			spec{name: "total_limit_size", kind: kindSize, def: "64g", doc: "undelivered bytes"},
			spec{name: "overflow_action", kind: kindEnum, def: "throw_exception", values: []string{"throw_exception", "block", "drop_oldest_chunk"}, doc: "what to do beyond total_limit_size: no ack, stop reading, or drop"},
			spec{name: "rejected_limit_size", kind: kindSize, def: "256m", doc: "bytes of the quarantine of what can never be taken; the oldest makes room"},
			spec{name: "durability", kind: kindEnum, def: "fsync", values: []string{"fsync", "none"}, doc: "none acks what is written and not synced"},
			spec{name: "dedupe_window", kind: kindInt, def: "1000000", doc: "how many chunk ids are remembered, so that what is sent again is not stored again; 0 for none"},
			spec{name: "dedupe_age", kind: kindTime, def: "1h", doc: "how long they are remembered"},
			spec{name: "compress", kind: kindEnum, status: ignored, values: []string{"text", "gzip", "zstd"}, doc: "payloads are stored as they came"},
			spec{name: "chunk_limit_records", kind: kindInt, status: ignored},
			spec{name: "chunk_full_threshold", kind: kindFloat, status: ignored},
			spec{name: "queue_limit_length", kind: kindInt, status: ignored},
			spec{name: "queued_chunks_limit_size", kind: kindInt, status: ignored},
			spec{name: "disable_chunk_backup", kind: kindBool, status: ignored},
		)
	}
	if delivery {
		s.params = append(s.params,
			spec{name: "flush_mode", kind: kindEnum, def: "default", values: []string{"default", "lazy", "interval", "immediate"}, doc: "immediate is flush_interval 0s"},
			spec{name: "flush_interval", kind: kindTime, def: "1s", doc: "how long events may gather before they are written"},
			spec{name: "timekey", kind: kindTime, doc: "decides the time that is appended to a path without one: 1d, 1h or 1m"},
			spec{name: "timekey_use_utc", kind: kindBool, def: "false"},
			spec{name: "timekey_zone"},
			spec{name: "timekey_wait", kind: kindTime, status: ignored, doc: "weir writes each event to the file of its time at once"},
			spec{name: "flush_at_shutdown", kind: kindBool, status: ignored, doc: "weir flushes within drain_timeout; the rest stays in the buffer"},
			spec{name: "flush_thread_count", kind: kindInt, status: ignored},
			spec{name: "flush_thread_interval", kind: kindTime, status: ignored},
			spec{name: "flush_thread_burst_interval", kind: kindTime, status: ignored},
			spec{name: "delayed_commit_timeout", kind: kindTime, status: ignored},
			spec{name: "retry_type", kind: kindEnum, def: "exponential_backoff", values: []string{"exponential_backoff", "periodic"}},
			spec{name: "retry_wait", kind: kindTime, def: "1s"},
			spec{name: "retry_exponential_backoff_base", kind: kindFloat, def: "2"},
			spec{name: "retry_max_interval", kind: kindTime},
			spec{name: "retry_randomize", kind: kindBool, def: "true"},
			spec{name: "retry_timeout", kind: kindTime, def: "72h"},
			spec{name: "retry_max_times", kind: kindInt},
			spec{name: "retry_forever", kind: kindBool, def: "false"},
			spec{name: "retry_secondary_threshold", kind: kindFloat, def: "0.8"},
		)
	}
	return s
}
