package config

import (
	"crypto/fips140"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Source is a <source> with @type forward. Sizes are bytes.
type Source struct {
	ID, Label string
	// Addresses are host:port or unix:/path.
	Addresses              []string
	Backlog                int  // 0: what the kernel allows
	AllowShortBacklog      bool // on_backlog_mismatch warn
	Listeners              int  // sockets on each TCP address, SO_REUSEPORT if over 1
	MaxConnections         int
	MaxPerClient           int // 0: no limit
	Tag, TagPrefix         string
	SourceAddressKey       string
	SourceHostnameKey      string
	HealthGrace            time.Duration
	MemoryLimit            int64
	HandshakeTimeout       time.Duration
	IdleTimeout            time.Duration
	MaxConnectionAge       time.Duration // 0: never
	Linger                 int           // seconds, -1 if not set
	DenyKeepalive          bool
	SendKeepalive          bool
	ChunkSizeWarn          int64 // 0: never
	ChunkSizeLimit         int64
	DecompressionSizeLimit int64
	DecompressionRatio     int64
	NestingLimit           int
	StallTimeout           time.Duration
	MinRate                int64 // bytes a second; -1: none
	Refuse                 bool  // on_invalid refuse
	SkipInvalid            bool
	ProxyNetworks          []netip.Prefix // empty: proxy_protocol off
	Security               *Security
	TLS                    *TLS
	Params                 map[string]string // as written or default, secrets masked
}

// TLS is a <transport tls> section.
type TLS struct {
	CertPath, KeyPath, CACertPath, CAKeyPath, ClientCAPath string
	// KeyPassphrase and CAKeyPassphrase decrypt the keys, if they are encrypted.
	KeyPassphrase, CAKeyPassphrase Secret
	// Ciphers is the list of TLS 1.2 as written.
	Ciphers                  string
	ClientCertAuth, Insecure bool
	// MinVersion and MaxVersion are "1.2" or "1.3".
	MinVersion, MaxVersion string
	CommonName             string
}

// Security is a <security> section.
type Security struct {
	SelfHostname string
	SharedKey    Secret
	UserAuth     bool
	Users        map[string]Secret
	// DenyAnonymous is allow_anonymous_source false.
	DenyAnonymous bool
	Clients       []Client
}

// Client is a <client> section.
type Client struct {
	Network   netip.Prefix
	SharedKey Secret // empty: that of Security
	Users     []string
}

// Secret is a text that prints as xxxxxx.
type Secret string

// String hides the secret.
func (Secret) String() string { return masked }

// GoString hides the secret.
func (Secret) GoString() string { return masked }

const masked = "xxxxxx"

func (b *builder) port(n *node) int {
	p := n.integer("port")
	if p > 65535 {
		b.fail(n.values["port"].pos, "port %d is over 65535", p)
	}
	return p
}

func (b *builder) forward(n *node, index int) *Source {
	def := "forward"
	if index > 0 {
		def = fmt.Sprintf("forward-%d", index+1)
	}
	s := &Source{
		ID: b.id(n, def), Label: n.str("@label"),
		Backlog: n.integer("backlog"), AllowShortBacklog: n.str("on_backlog_mismatch") == "warn",
		MaxConnections: n.integer("max_connections"), MaxPerClient: n.integer("max_connections_per_client"),
		Tag: n.str("tag"), TagPrefix: n.str("add_tag_prefix"),
		SourceAddressKey: n.str("source_address_key"), SourceHostnameKey: n.str("source_hostname_key"), HealthGrace: n.duration("health_grace"), MemoryLimit: n.num("memory_limit"),
		HandshakeTimeout: n.duration("handshake_timeout"), IdleTimeout: n.duration("idle_timeout"),
		MaxConnectionAge: n.duration("max_connection_age"), Linger: -1,
		DenyKeepalive: n.boolean("deny_keepalive"), SendKeepalive: n.boolean("send_keepalive_packet"),
		ChunkSizeWarn: n.num("chunk_size_warn_limit"), ChunkSizeLimit: n.num("chunk_size_limit"),
		DecompressionSizeLimit: n.num("decompression_size_limit"), DecompressionRatio: n.num("decompression_ratio_limit"),
		NestingLimit: n.integer("nesting_limit"), StallTimeout: n.duration("stall_timeout"), MinRate: n.num("min_rate"),
		Refuse: n.str("on_invalid") == "refuse", SkipInvalid: n.boolean("skip_invalid_event"), Params: n.params(),
	}
	if n.isSet("linger_timeout") {
		s.Linger = n.integer("linger_timeout")
	}
	switch {
	case s.SourceHostnameKey != "" && n.isSet("resolve_hostname") && !n.boolean("resolve_hostname"):
		b.fail(n.values["resolve_hostname"].pos, "resolve_hostname must be true with source_hostname_key")
	case s.SourceHostnameKey == "" && n.boolean("resolve_hostname"):
		b.warn(n.values["resolve_hostname"].pos, "resolve_hostname is ignored: names are needed for source_hostname_key only")
	}
	if n.isSet("send_keepalive_packet") && n.boolean("send_keepalive_packet") && n.boolean("deny_keepalive") {
		b.fail(n.values["deny_keepalive"].pos, "deny_keepalive and send_keepalive_packet exclude each other: take one of them out")
	}
	for _, name := range []string{"tag", "add_tag_prefix"} {
		if n.isSet(name) && n.str(name) == "" {
			b.fail(n.values[name].pos, "%s must not be empty", name)
		}
	}
	for _, limit := range []string{"max_connections", "memory_limit", "handshake_timeout", "chunk_size_limit", "decompression_size_limit",
		"decompression_ratio_limit", "nesting_limit", "stall_timeout"} {
		if n.num(limit) == 0 {
			b.fail(n.values[limit].pos, "%s must be more than 0", limit)
		}
	}
	if s.MinRate == 0 {
		s.MinRate = -1
	}
	b.proxy(n, s)
	b.listeners(n, s)
	port := strconv.Itoa(b.port(n))
	for _, a := range strings.Split(n.str("bind"), ",") {
		a = strings.TrimSpace(a)
		if a == "" {
			b.fail(n.values["bind"].pos, "bind has an empty address")
			continue
		}
		if !strings.HasPrefix(a, "unix:") {
			a = net.JoinHostPort(strings.Trim(a, "[]"), port)
		}
		s.Addresses = append(s.Addresses, a)
	}
	if sec := n.child("security"); sec != nil {
		s.Security = b.security(sec)
	}
	if t := n.child("transport"); t != nil && t.arg != "tcp" {
		s.TLS = b.tls(t, s.Security)
		if t.isSet("linger_timeout") {
			s.Linger = t.integer("linger_timeout")
		}
	}
	return s
}

// maxListeners bounds listeners: more than CPUs help nobody.
const maxListeners = 256

// listeners reads listeners.
func (b *builder) listeners(n *node, s *Source) {
	s.Listeners = n.integer("listeners")
	switch at := n.values["listeners"].pos; {
	case s.Listeners < 1 || s.Listeners > maxListeners:
		b.fail(at, "listeners %d is not a number from 1 to %d", s.Listeners, maxListeners)
	case s.Listeners > 1:
		b.warn(at, "listeners %d splits the accept queue: the kernel spreads connections by hash, a full part drops although others have room, and closing one resets its queue unless net.ipv4.tcp_migrate_req is 1; one listener with a larger backlog has neither fault", s.Listeners)
		if strings.Contains(n.str("bind"), "unix:") {
			b.warn(at, "listeners is ignored for unix sockets")
		}
	}
}

// proxy reads proxy_protocol and proxy_protocol_from.
func (b *builder) proxy(n *node, s *Source) {
	networks := list(n.str("proxy_protocol_from"))
	if n.str("proxy_protocol") == "off" {
		if len(networks) > 0 {
			b.warn(n.values["proxy_protocol_from"].pos, "proxy_protocol_from is ignored: proxy_protocol is off")
		}
		return
	}
	if len(networks) == 0 {
		b.fail(n.values["proxy_protocol"].pos, "proxy_protocol on needs proxy_protocol_from, the networks of the load balancers: anybody else could claim any address")
	}
	for _, text := range networks {
		prefix, err := parseNetwork(text)
		if err != nil {
			b.fail(n.values["proxy_protocol_from"].pos, "proxy_protocol_from: %q is not of the form 192.0.2.0/24", text)
			continue
		}
		s.ProxyNetworks = append(s.ProxyNetworks, prefix)
	}
}

// parseNetwork reads a network, or the address of a single host.
func parseNetwork(text string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

// monitor reads a <source> with @type monitor_agent.
func (b *builder) monitor(n *node) Monitor {
	m := Monitor{ID: b.id(n, "monitor_agent"), Bind: n.str("bind"), Port: b.port(n), Username: n.str("username"), Password: Secret(n.str("password")),
		HideConfig: !n.boolean("include_config"), HideRetry: !n.boolean("include_retry"), FluentdMetrics: n.boolean("fluentd_metrics"), Params: n.params()}
	if (m.Username == "") != (m.Password == "") {
		b.fail(n.pos, "username and password belong together")
	}
	if t := n.child("transport"); t != nil && t.arg != "tcp" {
		m.TLS = b.tls(t, nil)
	}
	if ip, err := netip.ParseAddr(strings.Trim(m.Bind, "[]")); m.TLS == nil && m.Username == "" && m.Bind != "localhost" && (err != nil || !ip.IsLoopback()) {
		b.warn(n.pos, "the status endpoint on %s has neither TLS nor a password: everybody who reaches it sees tags, senders and the configuration; bind it to 127.0.0.1, or give it username and password and <transport tls>", m.Bind)
	}
	return m
}

func (b *builder) security(n *node) *Security {
	s := &Security{SelfHostname: n.str("self_hostname"), SharedKey: Secret(n.str("shared_key")),
		UserAuth: n.boolean("user_auth"), Users: map[string]Secret{}, DenyAnonymous: !n.boolean("allow_anonymous_source")}
	for _, u := range n.children {
		if u.spec.name == "client" {
			s.Clients = append(s.Clients, b.client(u))
			continue
		}
		name := u.str("username")
		if _, dup := s.Users[name]; dup {
			b.fail(u.pos, "user %s is given twice", name)
		}
		s.Users[name] = Secret(u.str("password"))
	}
	for _, c := range s.Clients {
		for _, name := range c.Users {
			if _, ok := s.Users[name]; !ok {
				b.fail(n.pos, "<client> names user %s, and there is no such <user>%s", name, suggest(name, keys(s.Users)))
			}
		}
	}
	if s.DenyAnonymous && len(s.Clients) == 0 {
		b.fail(n.pos, "allow_anonymous_source is false and there is no <client>: nobody could connect")
	}
	if s.UserAuth && len(s.Users) == 0 {
		b.fail(n.pos, "user_auth is true and there is no <user>: nobody could connect")
	}
	if !s.UserAuth && len(s.Users) > 0 {
		b.warn(n.pos, "there are <user> sections and user_auth is not true: passwords are not asked for")
	}
	return s
}

// tls reads a <transport tls>.
func (b *builder) tls(n *node, sec *Security) *TLS {
	t := &TLS{CertPath: n.str("cert_path"), KeyPath: n.str("private_key_path"), CACertPath: n.str("ca_cert_path"), CAKeyPath: n.str("ca_private_key_path"),
		ClientCAPath: n.str("ca_path"), ClientCertAuth: n.boolean("client_cert_auth"), Insecure: n.boolean("insecure"), CommonName: n.str("generate_cert_common_name"),
		KeyPassphrase: Secret(n.str("private_key_passphrase")), CAKeyPassphrase: Secret(n.str("ca_private_key_passphrase")), Ciphers: n.str("ciphers")}
	if n.arg != "tls" {
		b.fail(n.pos, "<transport %s> is neither tls nor tcp", n.arg)
	}
	number := func(name string) string { return strings.ReplaceAll(strings.TrimLeft(n.str(name), "TLSv"), "_", ".") }
	t.MinVersion, t.MaxVersion = number("min_version"), number("max_version")
	if n.isSet("version") {
		t.MinVersion, t.MaxVersion = number("version"), number("version")
	}
	if t.MinVersion > t.MaxVersion {
		b.fail(n.pos, "min_version is over max_version")
	}
	switch {
	case (t.CertPath == "") != (t.KeyPath == ""):
		b.fail(n.pos, "cert_path and private_key_path belong together")
	case (t.CACertPath == "") != (t.CAKeyPath == ""):
		b.fail(n.pos, "ca_cert_path and ca_private_key_path belong together")
	case t.CertPath == "" && t.CACertPath == "" && !t.Insecure:
		b.fail(n.pos, "<transport tls> needs cert_path and private_key_path, ca_cert_path and ca_private_key_path, or insecure true")
	}
	if n.boolean("ensure_fips") && !fips140.Enabled() {
		b.fail(n.values["ensure_fips"].pos, "ensure_fips is true and weir does not run in FIPS 140-3 mode: start it with GODEBUG=fips140=on in its environment")
	}
	if t.ClientCertAuth && t.ClientCAPath == "" {
		b.fail(n.pos, "client_cert_auth needs ca_path, the CAs of the clients")
	}
	if t.CommonName == "" && sec != nil {
		t.CommonName = sec.SelfHostname
	}
	if t.CommonName == "" {
		host, err := b.env.Hostname()
		if err != nil {
			host = "localhost"
		}
		t.CommonName = host
	}
	return t
}

// client reads a <client>: a host by address or name, or a network.
func (b *builder) client(n *node) Client {
	c := Client{SharedKey: Secret(n.str("shared_key")), Users: list(n.str("users"))}
	host, network := n.str("host"), n.str("network")
	switch {
	case (host == "") == (network == ""):
		b.fail(n.pos, "<client> takes either host or network")
	case network != "":
		prefix, err := parseNetwork(network)
		if err != nil {
			b.fail(n.values["network"].pos, "network %q is not of the form 192.0.2.0/24", network)
		}
		c.Network = prefix
	default:
		ip, err := netip.ParseAddr(host)
		if err != nil {
			var ips []string
			if ips, err = b.env.LookupHost(host); err == nil && len(ips) > 0 {
				ip, err = netip.ParseAddr(ips[0])
			}
		}
		if err != nil {
			b.fail(n.values["host"].pos, "host %s cannot be resolved: %v", host, err)
			return c
		}
		ip = ip.Unmap()
		c.Network = netip.PrefixFrom(ip, ip.BitLen())
	}
	return c
}
