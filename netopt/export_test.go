package netopt

import "time"

// Watching reports whether the watchdog will look again.
func (l *Listener) Watching() bool { return l.watching.Load() }

// SetPatience is how long AcceptSpeaking holds connections, to be set before its
// first call.
func (l *Listener) SetPatience(d time.Duration) { l.lobby.patience = d }
