package status

import (
	"fmt"
	"strconv"
	"time"

	"weir/internal/queue"
)

// Amount writes n with a binary prefix where it counts bytes.
func Amount(n int64, u queue.Unit) string {
	if u != queue.UnitBytes || n < 1024 {
		if u == queue.UnitBytes {
			return fmt.Sprintf("%d B", n)
		}
		return strconv.FormatInt(n, 10)
	}
	v, prefix := float64(n), ""
	for _, p := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if v < 1024 {
			break
		}
		v, prefix = v/1024, p
	}
	return fmt.Sprintf("%.1f %sB", v, prefix)
}

// Age rounds d to what a person reads at a glance.
func Age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// Printable keeps what came from outside (tags, addresses, errors) from
// steering the terminal.
func Printable(s string) string {
	clean := true
	for _, r := range s {
		if !strconv.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	q := strconv.QuoteToGraphic(s)
	return q[1 : len(q)-1]
}
