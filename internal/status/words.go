package status

import (
	"time"

	"weir/internal/queue"
)

// Amount writes n with a binary prefix where u counts bytes.
func Amount(n int64, u queue.Unit) string { return amount(n, u) }

// Age rounds d to what a person reads at a glance.
func Age(d time.Duration) string { return age(d) }

// Printable keeps what came from outside (tags, addresses, errors) from
// steering the terminal.
func Printable(s string) string { return printable(s) }
