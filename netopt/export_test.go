package netopt

import "time"

// Watching reports whether the watchdog will look again.
func (l *Listener) Watching() bool { return l.watching.Load() }

// SetPatience is how long AcceptSpeaking holds connections, to be set before its
// first call.
func (l *Listener) SetPatience(d time.Duration) { l.lobby.patience = d }

// SetStormPace is how slowly connections may come in a storm, to be set before the
// first call of AcceptSpeaking.
func (l *Listener) SetStormPace(d time.Duration) { l.lobby.storm.slowest = d }

// SetStormWait is for how long connections are left in the queue in a storm, to be set
// before the first call of AcceptSpeaking.
func (l *Listener) SetStormWait(d time.Duration) { l.lobby.storm.round, l.lobby.storm.most = 1<<20, d }
