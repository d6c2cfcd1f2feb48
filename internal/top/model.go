package top

import (
	"time"

	tea "charm.land/bubbletea/v2"

	"weir/internal/status"
)

// Model is the screen's state.
type Model struct {
	width, height int
	frame         *status.Frame
	received      time.Time // when frame came
	lost          error     // why no frames come; nil while they do
	now           time.Time
	points        []status.Point // for the charts, oldest first
	order         order
	rank          Ranker
	asking        bool      // rank is at work
	ranked        rankedMsg // its last answer
}

// NewModel returns a Model of 80 by 24 that waits for its first frame, and shows
// senders with most heartbeats first. rank may be nil; then the senders that a frame
// lists are all that is sorted.
func NewModel(rank Ranker) *Model {
	return &Model{width: 80, height: 24, order: orders[0], rank: rank}
}

// tickMsg is the time: it goes on when frames do not.
type tickMsg time.Time

func tick() tea.Cmd {
	return tea.Tick(time.Second, func(t time.Time) tea.Msg { return tickMsg(t) })
}

// Init implements tea.Model.
func (m *Model) Init() tea.Cmd { return tick() }

// Update implements tea.Model.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		switch key := msg.String(); key {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		default:
			for _, o := range orders {
				if o.key == key {
					m.order = o
				}
			}
			return m, m.askSenders()
		}
	case frameMsg:
		m.frame, m.received, m.lost = msg.frame, msg.at, nil
		m.now = msg.at
		m.addPoint(msg.frame.Point)
		return m, m.askSenders()
	case historyMsg:
		m.points = msg.points
	case rankedMsg:
		m.asking = false
		m.ranked = msg
		if msg.by != m.order.by { // another order was chosen meanwhile
			return m, m.askSenders()
		}
	case lostMsg:
		m.lost = msg.err
	case tickMsg:
		m.now = time.Time(msg)
		return m, tick()
	}
	return m, nil
}

// View implements tea.Model.
func (m *Model) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	v.WindowTitle = "weir top"
	return v
}
