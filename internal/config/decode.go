package config

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// node is a section that has been checked against the schema.
type node struct {
	spec     *section // as in the schema
	typ      string   // @type
	arg      string
	pos      Pos
	specs    []spec // of the section and its @type
	values   map[string]value
	children []*node
}

// value is a parameter's, given or default.
type value struct {
	text string
	set  bool // given in the file
	pos  Pos
	num  int64 // of kindInt, kindSize (bytes), kindTime (nanoseconds), kindMode, kindBool
	real float64
}

func (n *node) str(name string) string             { return n.values[name].text }
func (n *node) num(name string) int64              { return n.values[name].num }
func (n *node) integer(name string) int            { return int(n.values[name].num) }
func (n *node) boolean(name string) bool           { return n.values[name].num != 0 }
func (n *node) duration(name string) time.Duration { return time.Duration(n.values[name].num) }
func (n *node) isSet(name string) bool             { return n.values[name].set }

// child returns the only section of that name, nil if there is none.
func (n *node) child(name string) *node {
	for _, c := range n.children {
		if c.spec.name == name {
			return c
		}
	}
	return nil
}

// decoder checks elements against the schema and gathers problems.
type decoder struct {
	errs     []error
	warnings []string
}

func (d *decoder) fail(p Pos, format string, args ...any) {
	d.errs = append(d.errs, &Error{p, fmt.Sprintf(format, args...)})
}

func (d *decoder) warn(p Pos, format string, args ...any) {
	d.warnings = append(d.warnings, p.String()+": "+fmt.Sprintf(format, args...))
}

// section checks an element.
func (d *decoder) section(e *element, s *section) *node {
	n := &node{spec: s, arg: e.arg, pos: e.pos, specs: s.params, values: map[string]value{}}
	children := s.children
	if e.arg != "" && s.arg == "" {
		d.fail(e.pos, "<%s> takes no argument, %q is one", e.name, e.arg)
	}
	if s.types != nil {
		t := d.typeOf(e, s)
		if t == nil {
			return n
		}
		n.typ = e.typ(s.defaultType)
		n.specs = slices.Concat(s.params, t.params)
		children = slices.Concat(children, t.children)
	}
	d.params(e, n)
	seen := map[string]bool{}
	for _, c := range e.children {
		i := slices.IndexFunc(children, func(s *section) bool { return s.name == c.name })
		if i < 0 {
			d.unknownSection(c, e, children)
			continue
		}
		if children[i].single && seen[c.name] {
			d.fail(c.pos, "a second <%s> in the same place", c.name)
			continue
		}
		seen[c.name] = true
		n.children = append(n.children, d.section(c, children[i]))
	}
	return n
}

// typ is the value of @type.
func (e *element) typ(def string) string {
	for _, p := range e.params {
		if p.name == "@type" {
			return p.value
		}
	}
	return def
}

func (d *decoder) typeOf(e *element, s *section) *section {
	name := e.typ(s.defaultType)
	if name == "" {
		d.fail(e.pos, "<%s> lacks its @type; weir knows %s", e.name, strings.Join(keys(s.types), ", "))
		return nil
	}
	t := s.types[name]
	if t == nil {
		d.fail(e.pos, "<%s> with @type %s is not known; weir knows %s%s", e.name, name, strings.Join(keys(s.types), ", "), suggest(name, keys(s.types)))
	}
	return t
}

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// unknownSection says why a section cannot stand here.
func (d *decoder) unknownSection(c, parent *element, known []*section) {
	switch c.name {
	case "filter":
		d.fail(c.pos, "weir stores messages as they come and has no filters: filter at the sender, or behind weir")
	case "parse":
		d.fail(c.pos, "weir parses nothing: parse at the sender, or behind weir")
	case "worker":
		d.fail(c.pos, "weir is one process on all cores: take what is in <worker> out of it")
	default:
		var names []string
		for _, s := range known {
			names = append(names, s.name)
		}
		where := "at the top level"
		if parent.name != "ROOT" {
			where = "in <" + parent.name + ">"
		}
		d.fail(c.pos, "unknown section <%s> %s%s", c.name, where, suggest(c.name, names))
	}
}

// params checks the parameters of e and fills in the defaults.
func (d *decoder) params(e *element, n *node) {
	seen := map[string]Pos{}
	for _, p := range e.params {
		if p.name == "@type" && n.typ != "" {
			continue
		}
		if first, dup := seen[p.name]; dup {
			d.fail(p.pos, "%s is given twice; the first is in line %d", p.name, first.Line)
			continue
		}
		seen[p.name] = p.pos
		i := slices.IndexFunc(n.specs, func(s spec) bool { return s.name == p.name })
		if i < 0 {
			d.unknownParam(e, n, p)
			continue
		}
		s := n.specs[i]
		switch s.status {
		case later:
			instead := "take the line out if you can do without it"
			if s.doc != "" {
				instead = s.doc
			}
			d.fail(p.pos, "%s is not supported by this version of weir; %s", p.name, instead)
			continue
		case ignored:
			why := ""
			if s.doc != "" {
				why = ": " + s.doc
			}
			d.warn(p.pos, "%s is ignored%s", p.name, why)
		}
		v, err := parseValue(s, p.value)
		if err != nil {
			d.fail(p.pos, "%s: %v", p.name, err)
			continue
		}
		v.set, v.pos = true, p.pos
		n.values[p.name] = v
	}
	for _, s := range n.specs {
		if _, given := seen[s.name]; given {
			continue
		}
		if s.required {
			d.fail(n.pos, "<%s> lacks its %s", e.name, s.name)
		}
		if s.def != "" {
			v, err := parseValue(s, s.def)
			if err != nil {
				d.fail(n.pos, "default of %s: %v", s.name, err)
			}
			n.values[s.name] = v
		}
	}
}

func (d *decoder) unknownParam(e *element, n *node, p param) {
	if e.name == "buffer" {
		for _, s := range bufferSection(true, true).params {
			if s.name == p.name && s.status == works {
				where := "each <store>'s own <buffer>"
				if slices.ContainsFunc(bufferSection(true, false).params, func(s spec) bool { return s.name == p.name }) {
					where = "the <buffer> of the copy match, since all its stores read one buffer"
				}
				d.fail(p.pos, "%s belongs into %s", p.name, where)
				return
			}
		}
	}
	var names []string
	for _, s := range n.specs {
		names = append(names, s.name)
	}
	of := "<" + e.name + ">"
	if e.name == "ROOT" {
		d.fail(p.pos, "%s stands outside of any section", p.name)
		return
	}
	if n.typ != "" {
		of += " with @type " + n.typ
	}
	d.fail(p.pos, "unknown parameter %s of %s%s", p.name, of, suggest(p.name, names))
}

// parseValue reads the text of a value.
func parseValue(s spec, text string) (v value, err error) {
	v.text = text
	switch s.kind {
	case kindBool:
		switch strings.ToLower(text) {
		case "true", "yes", "": // a name alone means true
			v.num, v.text = 1, "true"
		case "false", "no":
			v.text = "false"
		default:
			err = fmt.Errorf("%q is neither true nor false", text)
		}
	case kindInt:
		v.num, err = strconv.ParseInt(text, 10, 64)
		if err != nil || v.num < 0 {
			err = fmt.Errorf("%q is not a whole number of 0 or more", text)
		}
	case kindFloat:
		v.real, err = strconv.ParseFloat(text, 64)
		if err != nil || v.real < 0 {
			err = fmt.Errorf("%q is not a number of 0 or more", text)
		}
	case kindSize:
		v.num, err = scaled(text, map[byte]float64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40}, "a size such as 512k, 8m or 2g")
	case kindTime:
		v.num, err = scaled(text, map[byte]float64{'s': 1e9, 'm': 60e9, 'h': 3600e9, 'd': 86400e9, 0: 1e9}, "a time such as 500ms, 10s, 5m, 1h or 1d")
	case kindEnum:
		if !slices.Contains(s.values, text) {
			err = fmt.Errorf("%q is none of %s%s", text, strings.Join(s.values, ", "), suggest(text, s.values))
		}
	case kindMode:
		v.num, err = strconv.ParseInt(text, 8, 64)
		if err != nil || v.num < 0 || v.num > 0o7777 {
			err = fmt.Errorf("%q is not an octal permission such as 0644", text)
		}
	}
	return v, err
}

// scaled reads a number with a unit. A unit of 0 stands for none.
func scaled(text string, units map[byte]float64, want string) (int64, error) {
	number, unit := text, 1.0
	if u, ok := units[0]; ok {
		unit = u
	}
	if ms, ok := strings.CutSuffix(text, "ms"); ok && units['s'] != 0 {
		number, unit = ms, 1e6
	} else if n := len(text); n > 0 {
		if u, ok := units[text[n-1]|0x20]; ok && text[n-1] >= 'A' {
			number, unit = text[:n-1], u
		}
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || f < 0 || f*unit >= 1<<62 {
		return 0, fmt.Errorf("%q is not %s", text, want)
	}
	return int64(f * unit), nil
}

// suggest names the known word that is nearest, if it is near enough to be
// meant.
func suggest(word string, known []string) string {
	best, distance := "", 1+len(word)/3
	sorted := slices.Clone(known)
	sort.Strings(sorted)
	for _, k := range sorted {
		if d := editDistance(word, k); d <= distance && (best == "" || d < distance) {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance counts the edits from a to b: insert, delete, change, and swap
// of neighbours.
func editDistance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
