package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
)

const (
	defaultName           = "default"
	defaultTokenURL       = "https://api-auth.autopay.io/oauth/token" //nolint:gosec // an address, not a credential
	defaultAudience       = "https://api.autopay.io"
	defaultRequestTimeout = 10  // seconds
	defaultRequestLimit   = 100 // token requests in 24 hours

	maxFieldSize    = 4096             // bytes of an ID, secret, URL or audience
	maxCACertSize   = 256 << 10        // bytes
	maxPeriod       = 3650 * 24 * 3600 // seconds
	maxRequestLimit = 1_000_000
)

// configEntry is what storage keeps at config/NAME. Numbers are whole
// seconds; "" stands for the default.
type configEntry struct {
	ClientID          string `json:"client_id"`
	ClientSecret      string `json:"client_secret"`
	TokenURL          string `json:"token_url,omitempty"`
	Audience          string `json:"audience,omitempty"`
	CACert            string `json:"ca_cert,omitempty"`
	RotationPeriod    int64  `json:"rotation_period,omitempty"`
	RequestTimeout    int64  `json:"request_timeout"`
	TokenRequestLimit int    `json:"token_request_limit"`
	// Generation is random and new whenever something changes that a token
	// is issued for.
	Generation string `json:"generation"`
}

// newConfigEntry returns an entry whose numbers are the defaults.
func newConfigEntry() *configEntry {
	return &configEntry{RequestTimeout: defaultRequestTimeout, TokenRequestLimit: defaultRequestLimit}
}

// decodeConfig reads a stored entry.
func decodeConfig(data []byte) (*configEntry, error) {
	c := newConfigEntry()
	if json.Unmarshal(data, c) != nil {
		return nil, errors.New("it is not the JSON that this engine writes")
	}
	if c.Generation == "" {
		return nil, errors.New("its generation is missing")
	}
	return c, c.validate()
}

// tokenRequest is what the exchange needs of the settings.
func (c *configEntry) tokenRequest() tokenRequest {
	return tokenRequest{
		tokenURL:     c.tokenURL(),
		clientID:     c.ClientID,
		clientSecret: c.ClientSecret,
		audience:     c.audience(),
		caCert:       c.CACert,
		timeout:      time.Duration(c.RequestTimeout) * time.Second,
	}
}

func (c *configEntry) tokenURL() string {
	if c.TokenURL == "" {
		return defaultTokenURL
	}
	return c.TokenURL
}

func (c *configEntry) audience() string {
	if c.Audience == "" {
		return defaultAudience
	}
	return c.Audience
}

// sendsTo reports whether a token request goes to the same place as d's.
func (c *configEntry) sendsTo(d *configEntry) bool {
	return c.tokenURL() == d.tokenURL() && c.CACert == d.CACert
}

// issuesAs reports whether a token of d's settings is one of c's too.
func (c *configEntry) issuesAs(d *configEntry) bool {
	return c.sendsTo(d) && c.ClientID == d.ClientID && c.ClientSecret == d.ClientSecret &&
		c.audience() == d.audience()
}

// set changes one field to a value from a request. The error names the field
// and the rule and never quotes the value, which may be a secret in the wrong
// place. Text must come as a JSON string: on the way to a plugin numbers turn
// into floats, which would change a secret in silence.
func (c *configEntry) set(field string, value any) error {
	switch field {
	case fieldRotationPeriod:
		return setNumber(field, value, seconds, &c.RotationPeriod)
	case fieldRequestTimeout:
		return setNumber(field, value, seconds, &c.RequestTimeout)
	case fieldTokenRequestLimit:
		return setNumber(field, value, wholeNumber, &c.TokenRequestLimit)
	case fieldVerify:
		if _, err := parseutil.ParseBool(value); err != nil || value == nil || value == "" {
			return fmt.Errorf("%s must be true or false", field)
		}
		return nil
	}
	to, known := map[string]*string{
		fieldClientID:     &c.ClientID,
		fieldClientSecret: &c.ClientSecret,
		fieldTokenURL:     &c.TokenURL,
		fieldAudience:     &c.Audience,
		fieldCACert:       &c.CACert,
	}[field]
	if !known {
		return nil // the framework warns of it
	}
	text, ok := value.(string)
	if !ok {
		return fmt.Errorf("%s must be a string", field)
	}
	*to = text
	return nil
}

func setNumber[T int | int64](field string, value any, parse func(any) (int64, error), to *T) error {
	n, err := parse(value)
	if err != nil {
		return fmt.Errorf("%s must be %w", field, err)
	}
	*to = T(n)
	return nil
}

// wholeNumber reads a number as JSON, the CLI or the plugin's wire bring it.
func wholeNumber(value any) (int64, error) {
	n, err := strconv.ParseFloat(fmt.Sprint(value), 64)
	if err != nil || n != math.Trunc(n) || math.Abs(n) > math.MaxInt32 {
		return 0, errors.New("a whole number")
	}
	return int64(n), nil
}

// seconds reads a duration: a number of seconds, or text such as 90m or 2d.
func seconds(value any) (int64, error) {
	if n, err := wholeNumber(value); err == nil && n >= 0 {
		return n, nil
	}
	text, ok := value.(string)
	d, err := parseutil.ParseDurationSecond(text)
	if !ok || text == "" || err != nil || d < 0 || d%time.Second != 0 {
		return 0, errors.New("a duration in whole seconds, such as 3600 or 1h")
	}
	return int64(d / time.Second), nil
}

// validate checks every field; an error names the field and the rule.
func (c *configEntry) validate() error {
	for _, f := range []struct {
		name, value string
		required    bool
	}{
		{fieldClientID, c.ClientID, true},
		{fieldClientSecret, c.ClientSecret, true},
		{fieldTokenURL, c.TokenURL, false},
		{fieldAudience, c.Audience, false},
	} {
		switch {
		case f.required && f.value == "":
			return fmt.Errorf("%s is required and must not be empty", f.name)
		case len(f.value) > maxFieldSize:
			return fmt.Errorf("%s must be at most %d bytes long", f.name, maxFieldSize)
		case f.value != strings.TrimSpace(f.value) || strings.ContainsFunc(f.value, notPrintable):
			return fmt.Errorf("%s must be printable text without spaces, tabs or newlines around it "+
				"(does the file it came from end in a newline?)", f.name)
		}
	}
	if err := validateTokenURL(c.tokenURL()); err != nil {
		return err
	}
	switch {
	case c.RotationPeriod != 0 && (c.RotationPeriod < 5 || c.RotationPeriod > maxPeriod):
		return fmt.Errorf("%s must be 0 (three quarters of the token's lifetime), or from 5 seconds to 10 years", fieldRotationPeriod)
	case c.RequestTimeout < 1 || c.RequestTimeout > 60:
		return fmt.Errorf("%s must be from 1 to 60 seconds", fieldRequestTimeout)
	case c.TokenRequestLimit < 0 || c.TokenRequestLimit > maxRequestLimit:
		return fmt.Errorf("%s must be from 0 (unlimited) to %d", fieldTokenRequestLimit, maxRequestLimit)
	}
	return validateCACert(c.CACert)
}

func notPrintable(r rune) bool { return !unicode.IsPrint(r) }

// validateTokenURL keeps the secret off plain networks: https, or http to a
// loopback host only.
func validateTokenURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return fmt.Errorf("%s must be an absolute https URL", fieldTokenURL)
	case u.User != nil:
		return fmt.Errorf("%s must not hold a user name or password", fieldTokenURL)
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return fmt.Errorf("%s must not hold a fragment", fieldTokenURL)
	case u.Scheme == "https":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return fmt.Errorf("%s must be an https URL; plain http is allowed to a loopback host only", fieldTokenURL)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%s must have a port from 1 to 65535, or none", fieldTokenURL)
		}
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// validateCACert takes one or more PEM certificates and nothing else.
func validateCACert(data string) error {
	if data == "" {
		return nil
	}
	if len(data) > maxCACertSize {
		return fmt.Errorf("%s must be at most %d bytes long", fieldCACert, maxCACertSize)
	}
	for rest := []byte(data); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return fmt.Errorf("%s must hold PEM certificates and nothing else", fieldCACert)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("%s holds a certificate that can't be parsed", fieldCACert)
		}
		if len(bytes.TrimSpace(rest)) == 0 {
			return nil
		}
	}
}

// validName is what Vault's own engines take for a name in a path.
var validName = regexp.MustCompile(`^\w(([\w-.]+)?\w)?$`)

// credentialName is the credential a request is about: NAME, or default.
func credentialName(name string) (string, error) {
	switch {
	case name == "":
		return defaultName, nil
	case len(name) > 128 || !validName.MatchString(name):
		return "", errors.New("name must be at most 128 letters, digits, _, - and ., and begin and end with a letter, digit or _")
	}
	return name, nil
}
