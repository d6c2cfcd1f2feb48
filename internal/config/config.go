package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is a whole, checked configuration.
type Config struct {
	LogLevel     string
	RootDir      string
	DrainTimeout time.Duration
	Sources      []*Source
	// Monitor is the status endpoint.
	Monitor Monitor
	// Routes maps labels to their matches in order; "" is the top level.
	Routes map[string][]*Match
	// Warnings are what an operator should know, each with its place.
	Warnings []string

	root *node
}

// Monitor is a <source> with @type monitor_agent.
type Monitor struct {
	ID   string
	Bind string
	Port int
	// TLS is nil without a <transport tls>.
	TLS *TLS
	// Username and Password ask for basic authentication, unless they are empty.
	Username string
	Password Secret
	// HideConfig and HideRetry leave these out of plugins.json unless a request
	// asks for them (include_config false, include_retry false).
	HideConfig, HideRetry bool
	// FluentdMetrics adds the names of fluent-plugin-prometheus to the metrics.
	FluentdMetrics bool
	Params         map[string]string // as written or default, secrets masked
}

// Address is the host:port of the status endpoint.
func (m Monitor) Address() string { return net.JoinHostPort(m.Bind, strconv.Itoa(m.Port)) }

// Match is a <match> section: one buffer and its outputs.
type Match struct {
	ID      string
	Label   string
	Pattern string
	Buffer  Buffer
	Outputs []*Output
}

// Buffer is the part of <buffer> that is about storage.
type Buffer struct {
	Path       string
	ChunkLimit int64
	TotalLimit int64
	Overflow   string // overflow_action
	NoSync     bool   // durability none
	// DedupeWindow chunk ids are remembered for DedupeAge; 0 for none.
	DedupeWindow int
	DedupeAge    time.Duration
	// RejectedLimit is the size of the quarantine in bytes.
	RejectedLimit int64
}

// maxDedupeWindow keeps a buffer's memory of chunk ids below 3 GB.
const maxDedupeWindow = 100_000_000

// Output is a <match>, a <store> or a <secondary> as an output plugin.
type Output struct {
	ID, Type  string
	File      File
	Format    Format
	Inject    *Inject
	Flush     time.Duration
	Retry     Retry
	Secondary *Output
	Params    map[string]string
}

// File is the parameters of @type file.
type File struct {
	Path         string
	Append, Gzip bool
	AddSuffix    bool
	Suffix       string
	DirMode      os.FileMode
	FileMode     os.FileMode
	Timekey      time.Duration
	Zone         Zone
}

// Zone is where times are written.
type Zone struct {
	UTC  bool
	Name string // timezone, such as +09:00 or Asia/Tokyo; empty for local time or UTC
}

// Format is a <format> section.
type Format struct {
	Type       string
	TimeFormat string
	Zone       Zone
	OutputTime bool
	OutputTag  bool
	Delimiter  string
	MessageKey string
	Newline    bool
}

// Inject is an <inject> section.
type Inject struct {
	TagKey, TimeKey, HostnameKey, Hostname string
	TimeType, TimeFormat                   string
	Zone                                   Zone
}

// Retry is the retry parameters of <buffer>. Zero durations and a negative
// MaxTimes stand for no limit.
type Retry struct {
	Periodic           bool
	Wait               time.Duration
	Base               float64
	MaxInterval        time.Duration
	Randomize          bool
	Timeout            time.Duration
	MaxTimes           int
	Forever            bool
	SecondaryThreshold float64
}

// Load reads a file and all that it includes.
func Load(path string, env Env) (*Config, error) {
	ps := &parser{env: env}
	root := &element{name: "ROOT", pos: Pos{path, 1, 1}}
	ps.read(Pos{}, path, root)
	return build(ps, root, env)
}

// Parse reads a configuration from memory; name stands for the file in errors,
// and @include is relative to its directory.
func Parse(name, content string, env Env) (*Config, error) {
	ps := &parser{env: env, within: []string{name}}
	root := &element{name: "ROOT", pos: Pos{name, 1, 1}}
	ps.file(name, content, root)
	return build(ps, root, env)
}

// build checks the tree and types it. All problems are in the error, a line
// each.
func build(ps *parser, root *element, env Env) (*Config, error) {
	d := &decoder{errs: ps.errs}
	tree := d.section(root, schema())
	if len(d.errs) > 0 { // types below rely on a sound tree
		return nil, errors.Join(d.errs...)
	}
	c := &Config{Routes: map[string][]*Match{}, root: tree}
	b := &builder{decoder: d, c: c, env: env}
	b.system(tree)
	b.sources(tree)
	b.routes(tree)
	c.Warnings = d.warnings
	if len(d.errs) > 0 {
		return nil, errors.Join(d.errs...)
	}
	return c, nil
}

// builder turns nodes into the typed Config.
type builder struct {
	*decoder
	c   *Config
	env Env
	ids map[string]Pos
}

func (b *builder) system(root *node) {
	n := root.child("system")
	if n == nil { // an empty section has the defaults
		n = b.section(&element{name: "system", pos: root.pos}, systemSection())
		root.children = append(root.children, n)
	}
	b.c.LogLevel = n.str("log_level")
	b.c.RootDir = n.str("root_dir")
	b.c.DrainTimeout = n.duration("drain_timeout")
	if state, ok := b.env.Lookup("STATE_DIRECTORY"); ok && state != "" && !n.isSet("root_dir") {
		b.c.RootDir, _, _ = strings.Cut(state, ":")
	}
}

// FileName turns an id into a name for files and directories.
func FileName(id string) string {
	if strings.Trim(id, ".") == "" {
		return strings.ReplaceAll(id, ".", "%2E")
	}
	return url.PathEscape(id)
}

// id is the plugin's @id, or else def; ids are unique.
func (b *builder) id(n *node, def string) string {
	id := n.str("@id")
	if id == "" {
		id = def
	}
	if b.ids == nil {
		b.ids = map[string]Pos{}
	}
	if first, dup := b.ids[id]; dup {
		b.fail(n.pos, "@id %s is used twice, first in line %d; give each plugin an @id of its own", id, first.Line)
	}
	b.ids[id] = n.pos
	return id
}

func (b *builder) sources(root *node) {
	monitors := 0
	b.c.Monitor = Monitor{ID: "monitor_agent", Bind: "127.0.0.1", Port: 24220}
	for _, n := range root.children {
		switch {
		case n.spec.name != "source":
		case n.typ == "forward":
			b.c.Sources = append(b.c.Sources, b.forward(n, len(b.c.Sources)))
		case n.typ == "monitor_agent":
			if monitors++; monitors > 1 {
				b.fail(n.pos, "a second monitor_agent: one serves everything")
				continue
			}
			b.c.Monitor = b.monitor(n)
		}
	}
	if len(b.c.Sources) == 0 {
		b.fail(root.pos, "there is no <source> with @type forward: weir would receive nothing")
	}
}

// list reads an array, as JSON or separated by commas.
func list(text string) (items []string) {
	for _, item := range strings.Split(strings.Trim(text, "[]"), ",") {
		if item = strings.Trim(strings.TrimSpace(item), `"'`); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (b *builder) routes(root *node) {
	b.c.Routes[""] = b.matches(root, "")
	for _, n := range root.children {
		if n.spec.name != "label" {
			continue
		}
		if _, dup := b.c.Routes[n.arg]; dup || n.arg == "" {
			b.fail(n.pos, "<label> needs a name that no other has, such as @ACCESS")
			continue
		}
		b.c.Routes[n.arg] = b.matches(n, n.arg)
	}
	for _, s := range b.c.Sources {
		m, ok := b.c.Routes[s.Label]
		if !ok {
			b.fail(root.pos, "source %s sends to @label %s, and there is no such <label>%s", s.ID, s.Label, suggest(s.Label, keys(b.c.Routes)))
		} else if len(m) == 0 {
			b.fail(root.pos, "there is no <match> for source %s: weir would store nothing", s.ID)
		}
	}
	paths := map[string]string{}
	for _, label := range keys(b.c.Routes) {
		for _, m := range b.c.Routes[label] {
			path, err := filepath.Abs(m.Buffer.Path)
			if err != nil {
				path = m.Buffer.Path
			}
			if other, dup := paths[path]; dup {
				b.fail(root.pos, "<match %s> and <match %s> share the buffer path %s; give each its own", other, m.Pattern, m.Buffer.Path)
			}
			paths[path] = m.Pattern
		}
	}
}

// matches builds the matches of one label.
func (b *builder) matches(parent *node, label string) []*Match {
	var all []*Match
	catchAll := ""
	for _, n := range parent.children {
		if n.spec.name != "match" {
			continue
		}
		if n.arg == "" {
			n.arg = "**"
		}
		if catchAll != "" {
			b.warn(n.pos, "<match %s> gets nothing: <match %s> before it takes every tag", n.arg, catchAll)
		}
		if _, err := compilePatterns(n.arg); err != nil {
			b.fail(n.pos, "<match %s>: %v", n.arg, err)
			continue
		}
		if slices.Contains(patterns(n.arg), "**") {
			catchAll = n.arg
		}
		all = append(all, b.match(n, label))
	}
	if catchAll == "" && len(all) > 0 {
		where := "the top level"
		if label != "" {
			where = "<label " + label + ">"
		}
		b.warn(parent.pos, "%s has no <match **>: events with other tags are dropped, counted as no_match", where)
	}
	return all
}

func (b *builder) match(n *node, label string) *Match {
	// The name must stay the same from run to run, since the buffer has it.
	def := n.arg
	if label != "" {
		def = label + ":" + n.arg
	}
	m := &Match{ID: b.id(n, def), Label: label, Pattern: n.arg}
	storage := n.child("buffer")
	if storage == nil {
		storage = b.section(&element{name: "buffer", pos: n.pos}, bufferSection(true, n.typ != "copy"))
		n.children = append(n.children, storage)
	}
	m.Buffer = Buffer{
		Path: storage.str("path"), ChunkLimit: storage.num("chunk_limit_size"), TotalLimit: storage.num("total_limit_size"),
		Overflow: storage.str("overflow_action"), NoSync: storage.str("durability") == "none",
		RejectedLimit: storage.num("rejected_limit_size"),
		DedupeWindow:  int(storage.num("dedupe_window")), DedupeAge: time.Duration(storage.num("dedupe_age")),
	}
	if w := m.Buffer.DedupeWindow; w < 0 || w > maxDedupeWindow {
		b.fail(storage.values["dedupe_window"].pos, "dedupe_window must be from 0 (nothing is remembered) to %d", maxDedupeWindow)
	}
	if m.Buffer.DedupeWindow > 0 && m.Buffer.DedupeAge < time.Second {
		b.fail(storage.values["dedupe_age"].pos, "dedupe_age must be at least 1s; dedupe_window 0 turns it off")
	}
	if storage.str("@type") == "memory" {
		b.warn(storage.values["@type"].pos, "the buffer is kept in files, not in memory: an ack means that the events are on disk")
	}
	if m.Buffer.Path == "" {
		m.Buffer.Path = filepath.Join(b.c.RootDir, "buffer", FileName(m.ID))
	}
	for _, size := range []string{"chunk_limit_size", "total_limit_size", "rejected_limit_size"} {
		if storage.num(size) == 0 {
			b.fail(storage.values[size].pos, "%s must be more than 0", size)
		}
	}
	if n.typ != "copy" {
		m.Outputs = []*Output{b.output(n, m.ID)}
		return m
	}
	for _, store := range n.children {
		if store.spec.name == "store" {
			def := fmt.Sprintf("%s.%d", m.ID, len(m.Outputs)+1)
			m.Outputs = append(m.Outputs, b.output(store, b.id(store, def)))
		}
	}
	if len(m.Outputs) == 0 {
		b.fail(n.pos, "<match %s> with @type copy has no <store>", n.arg)
	}
	return m
}

// output builds an output plugin from a match, a store or a secondary.
func (b *builder) output(n *node, id string) *Output {
	o := &Output{ID: id, Type: n.typ, Params: n.params()}
	buf := n.child("buffer")
	if buf == nil {
		buf = b.section(&element{name: "buffer", pos: n.pos}, bufferSection(false, true))
	}
	o.Flush = buf.duration("flush_interval")
	if buf.str("flush_mode") == "immediate" {
		o.Flush = 0
	}
	o.Retry = retryOf(buf)
	o.Format = b.format(n)
	if in := n.child("inject"); in != nil {
		o.Inject = &Inject{TagKey: in.str("tag_key"), TimeKey: in.str("time_key"), HostnameKey: in.str("hostname_key"),
			Hostname: in.str("hostname"), TimeType: in.str("time_type"), TimeFormat: in.str("time_format"), Zone: zone(in)}
		if o.Inject.HostnameKey != "" && o.Inject.Hostname == "" {
			host, err := b.env.Hostname()
			if err != nil {
				b.fail(in.pos, "hostname_key: %v; give hostname", err)
			}
			o.Inject.Hostname = host
		}
	}
	if n.typ == "file" {
		o.File = File{
			Path: n.str("path"), Append: n.boolean("append"), Gzip: n.str("compress") != "text",
			AddSuffix: n.boolean("add_path_suffix"), Suffix: n.str("path_suffix"),
			DirMode: os.FileMode(n.num("dir_permission")), FileMode: os.FileMode(n.num("file_permission")),
			Timekey: buf.duration("timekey"), Zone: zone(n),
		}
		if !buf.isSet("timekey") && slicedByTime(buf.arg) {
			o.File.Timekey = defaultTimekey
		}
		if buf.boolean("timekey_use_utc") {
			o.File.Zone.UTC = true
		}
		if z := buf.str("timekey_zone"); z != "" {
			o.File.Zone.Name = z
		}
	}
	if sec := n.child("secondary"); sec != nil {
		o.Secondary = b.output(sec, id+".secondary")
	}
	return o
}

// defaultTimekey is that of fluentd's out_file.
const defaultTimekey = 24 * time.Hour

// slicedByTime reports whether the chunk keys of a <buffer> ask for files by
// time, as out_file does without any.
func slicedByTime(keys string) bool {
	fields := strings.FieldsFunc(keys, func(r rune) bool { return strings.ContainsRune(" ,[]\"", r) })
	return len(fields) == 0 || slices.Contains(fields, "time")
}

func retryOf(n *node) Retry {
	r := Retry{
		Periodic: n.str("retry_type") == "periodic", Wait: n.duration("retry_wait"),
		Base: n.values["retry_exponential_backoff_base"].real, MaxInterval: n.duration("retry_max_interval"),
		Randomize: n.boolean("retry_randomize"), Timeout: n.duration("retry_timeout"), MaxTimes: -1,
		Forever: n.boolean("retry_forever"), SecondaryThreshold: n.values["retry_secondary_threshold"].real,
	}
	if n.isSet("retry_max_times") {
		r.MaxTimes = n.integer("retry_max_times")
	}
	return r
}

func (b *builder) format(n *node) Format {
	f := n.child("format")
	if f == nil {
		def := "out_file"
		if n.typ == "stdout" {
			def = "stdout"
		}
		if v := n.str("format"); v != "" {
			def = v
		}
		f = b.section(&element{name: "format", pos: n.pos, params: []param{{"@type", def, n.pos}}}, formatSection(def))
	} else if n.isSet("format") {
		b.fail(n.values["format"].pos, "format is given beside <format>; keep one")
	}
	return Format{
		Type: f.typ, TimeFormat: f.str("time_format"), Zone: zone(f),
		OutputTime: f.boolean("output_time"), OutputTag: f.boolean("output_tag"), Delimiter: f.str("delimiter"),
		MessageKey: f.str("message_key"), Newline: f.boolean("add_newline"),
	}
}

// zone reads utc, localtime and timezone; fluentd lets the last one win.
func zone(n *node) Zone {
	z := Zone{Name: n.str("timezone")}
	z.UTC = n.boolean("utc") || n.isSet("localtime") && !n.boolean("localtime")
	return z
}
