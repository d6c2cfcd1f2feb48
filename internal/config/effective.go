package config

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// WriteEffective writes the configuration with its defaults, in the language
// that it is read in. Secrets are masked.
func (c *Config) WriteEffective(w io.Writer) error {
	b := bufio.NewWriter(w)
	for i, n := range ordered(c.root) {
		if i > 0 {
			fmt.Fprintln(b)
		}
		n.write(b, "")
	}
	return b.Flush()
}

// ordered puts <system> first, as people write it.
func ordered(root *node) []*node {
	all := slices.Clone(root.children)
	slices.SortStableFunc(all, func(a, b *node) int {
		return rank(a) - rank(b)
	})
	return all
}

func rank(n *node) int {
	if n.spec.name == "system" {
		return 0
	}
	return 1
}

func (n *node) write(b *bufio.Writer, indent string) {
	head := n.spec.name
	if n.arg != "" {
		head += " " + n.arg
	}
	fmt.Fprintf(b, "%s<%s>\n", indent, head)
	if n.typ != "" {
		fmt.Fprintf(b, "%s  @type %s\n", indent, n.typ)
	}
	for _, s := range n.specs {
		v, ok := n.values[s.name]
		if !ok || s.status != works {
			continue
		}
		fmt.Fprintf(b, "%s  %s %s\n", indent, s.name, written(s, v))
	}
	for _, c := range n.children {
		c.write(b, indent+"  ")
	}
	fmt.Fprintf(b, "%s</%s>\n", indent, n.spec.name)
}

// written is a value as the parser reads it back.
func written(s spec, v value) string {
	if s.kind == kindSecret {
		return masked
	}
	if s.kind == kindString && (v.text == "" || strings.TrimSpace(v.text) != v.text || strings.ContainsAny(v.text, "#\"'\n\\[{")) {
		q := strconv.Quote(v.text)
		return strings.ReplaceAll(q, "#{", `\#{`)
	}
	return v.text
}

// params are the section's parameters as monitor_agent shows them.
func (n *node) params() map[string]string {
	m := map[string]string{}
	if n.typ != "" {
		m["@type"] = n.typ
	}
	for _, s := range n.specs {
		if v, ok := n.values[s.name]; ok && s.status == works {
			m[s.name] = v.text
			if s.kind == kindSecret {
				m[s.name] = masked
			}
		}
	}
	return m
}

// Change is a parameter that differs between two configurations.
type Change struct {
	// Path says where, such as source[0].backlog.
	Path     string
	Old, New string
	// Live says that weir applies it without a restart.
	Live bool
}

// liveParams take effect on SIGHUP.
var liveParams = []string{"source.backlog", "source.on_backlog_mismatch", "system.log_level", "system.drain_timeout"}

// Diff lists what differs from old to new, for SIGHUP.
func Diff(old, new *Config) []Change {
	var changes []Change
	diff(old.root, new.root, "", "", &changes)
	return changes
}

func diff(a, b *node, path, kind string, out *[]Change) {
	if a.typ != b.typ || a.arg != b.arg {
		*out = append(*out, Change{Path: path, Old: a.typ + " " + a.arg, New: b.typ + " " + b.arg})
		return
	}
	for _, s := range b.specs {
		va, vb := a.values[s.name], b.values[s.name]
		if va.text == vb.text || s.status != works {
			continue
		}
		c := Change{Path: strings.TrimPrefix(path+"."+s.name, "."), Old: va.text, New: vb.text, Live: slices.Contains(liveParams, kind+"."+s.name)}
		if s.kind == kindSecret {
			c.Old, c.New = masked, masked
		}
		*out = append(*out, c)
	}
	// Sections are compared in their order, those of each name apart.
	byName := func(n *node) map[string][]*node {
		m := map[string][]*node{}
		for _, c := range n.children {
			m[c.spec.name] = append(m[c.spec.name], c)
		}
		return m
	}
	as, bs := byName(a), byName(b)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(append(keys(as), keys(bs)...)))) {
		for i := range max(len(as[name]), len(bs[name])) {
			at := strings.TrimPrefix(fmt.Sprintf("%s.%s[%d]", path, name, i), ".")
			switch {
			case i >= len(bs[name]):
				*out = append(*out, Change{Path: at, Old: "present", New: "absent"})
			case i >= len(as[name]):
				*out = append(*out, Change{Path: at, Old: "absent", New: "present"})
			default:
				diff(as[name][i], bs[name][i], at, name, out)
			}
		}
	}
}
