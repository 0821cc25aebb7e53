package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/robfig/cron/v3"
)

const (
	defaultName           = "default"
	defaultTokenURL       = "https://api-auth.autopay.io/oauth/token" //nolint:gosec // an address, not a credential
	defaultAudience       = "https://api.autopay.io"
	defaultRequestTimeout = 10  // seconds
	defaultRequestLimit   = 100 // token requests in 24 hours

	maxNameSize     = 128              // bytes
	maxFieldSize    = 4096             // bytes of an ID, secret, URL or audience
	maxCACertSize   = 256 << 10        // bytes
	maxPeriod       = 3650 * 24 * 3600 // seconds
	maxRequestLimit = 1_000_000

	fieldName             = "name"
	fieldClientSecret     = "client_secret"
	fieldSecretUpdated    = "client_secret_updated_time"
	fieldRotationPeriod   = "rotation_period"
	fieldRotationSchedule = "rotation_schedule"
	fieldVerify           = "verify"
)

// # Settings
//
// configFields is the one table that the config path is made of. A request is applied
// to a copy of the stored entry, field by field; then every rule is checked, and only
// then is anything stored or sent. So a refused write leaves everything as it was.
//
// Two groups of fields have rules beyond their own. A change of what a token is issued
// for makes a new generation, which the token in memory does not belong to. A change of
// where the secret is sent requires the secret in the same request, because a client
// that may only update the config must not be able to send it to a host of its own.
//
// Errors name the field and the rule, and never quote the value, which may be a secret
// in the wrong place. For the same reason checkFieldTypes runs before the SDK's own
// check of types, which does quote it, into the response and into Vault's log.

// configEntry is what storage keeps at config/NAME. Numbers are whole seconds
// unless they say otherwise; "" stands for the default.
type configEntry struct {
	ClientID          string `json:"client_id"`
	ClientSecret      string `json:"client_secret"`
	TokenURL          string `json:"token_url,omitempty"`
	Audience          string `json:"audience,omitempty"`
	CACert            string `json:"ca_cert,omitempty"`
	RotationPeriod    int64  `json:"rotation_period,omitempty"`
	RotationSchedule  string `json:"rotation_schedule,omitempty"`
	ScheduleSince     int64  `json:"schedule_since,omitempty"` // when RotationSchedule was set, Unix seconds
	RequestTimeout    int64  `json:"request_timeout"`
	TokenRequestLimit int    `json:"token_request_limit"` // requests in 24 hours
	// Generation is random. It is new whenever something changes that a token
	// is issued for (rule 7).
	Generation string `json:"generation"`
	// SecretUpdated is when ClientSecret was last changed, whole seconds in UTC;
	// zero: v0.1.0 stored it.
	SecretUpdated time.Time `json:"client_secret_updated_time,omitzero"`
}

// A configField is a field of the config path that is stored. Schema, parsing,
// validation, storage and reads are all derived from configFields, and tests
// verify that the docs match it.
type configField struct {
	name        string
	description string
	// value returns where the field stands in an entry: a *string, an *int64 for
	// a duration in seconds, or an *int.
	value    func(*configEntry) any
	fallback any // what "" means, or the number without a write; nil: nothing

	text  func(field, value string) error // the rule for a *string
	valid func(n int64) bool              // the rule for a number,
	rule  string                          // the rule as text, to follow "must be"

	// issuedFor marks what a token is issued for. A change starts a new
	// generation, and damage in storage makes the whole entry unusable.
	issuedFor bool
	// destination marks what decides where the secret is sent. A change must
	// bring the secret with it.
	destination bool
	secret      bool // never shown
}

// configFields are the stored fields, in the order in which they are checked.
var configFields = []configField{
	{
		name:        "client_id",
		description: "Client ID that Autopay issued. Required at creation.",
		value:       func(c *configEntry) any { return &c.ClientID },
		text:        checkRequired,
		issuedFor:   true,
	},
	{
		name:        fieldClientSecret,
		description: "Client secret that Autopay issued. Required at creation; never returned.",
		value:       func(c *configEntry) any { return &c.ClientSecret },
		text:        checkRequired,
		issuedFor:   true,
		secret:      true,
	},
	{
		name: "token_url",
		description: "Autopay's token endpoint: https, or http to a loopback host. A change requires client_secret " +
			`in the same request. "" restores the default, Autopay's own.`,
		value:       func(c *configEntry) any { return &c.TokenURL },
		fallback:    defaultTokenURL,
		text:        checkURL,
		issuedFor:   true,
		destination: true,
	},
	{
		name:        "audience",
		description: `API that tokens are requested for. "" restores the default.`,
		value:       func(c *configEntry) any { return &c.Audience },
		fallback:    defaultAudience,
		text:        checkText,
		issuedFor:   true,
	},
	{
		name: "ca_cert",
		description: "PEM certificates that are the only roots trusted for token_url. A change requires client_secret " +
			`in the same request. "" (the default) trusts the system's roots.`,
		value:       func(c *configEntry) any { return &c.CACert },
		text:        checkCertificates,
		issuedFor:   true,
		destination: true,
	},
	{
		name: fieldRotationPeriod,
		description: "Maximum age of a token before it is replaced, at least 5s; 0 (the default) means 75% of its " +
			"lifetime. Capped at 90% of its lifetime.",
		value: func(c *configEntry) any { return &c.RotationPeriod },
		valid: func(n int64) bool { return n == 0 || n >= 5 && n <= maxPeriod },
		rule:  "0 (75% of the token's lifetime), or from 5 seconds to 10 years",
	},
	{
		name: fieldRotationSchedule,
		description: "Cron expression with five fields, in UTC unless it begins with CRON_TZ=Area/City. A token is " +
			"replaced at the latest scheduled time within 90% of its lifetime; if there is none, at 75% of it. " +
			`Conflicts with rotation_period. "" (the default) means no schedule.`,
		value: func(c *configEntry) any { return &c.RotationSchedule },
		text:  checkSchedule,
	},
	{
		name:        "request_timeout",
		description: "Timeout for one token request, connection setup included, 1 to 60 seconds; 10 by default.",
		value:       func(c *configEntry) any { return &c.RequestTimeout },
		fallback:    defaultRequestTimeout,
		valid:       func(n int64) bool { return n >= 1 && n <= 60 },
		rule:        "from 1 to 60 seconds",
	},
	{
		name:        "token_request_limit",
		description: "Token requests allowed in any 24 hours; 100 by default, 0 is unlimited.",
		value:       func(c *configEntry) any { return &c.TokenRequestLimit },
		fallback:    defaultRequestLimit,
		valid:       func(n int64) bool { return n >= 0 && n <= maxRequestLimit },
		rule:        "from 0 (unlimited) to 1000000",
	},
}

// userError is the caller's fault: a 400. Its text names the field and the
// rule, and quotes no value.
type userError struct{ text string }

// Error implements error.
func (e *userError) Error() string { return e.text }

// newConfigEntry returns an entry whose numbers are the defaults. The default of a text is
// not stored, so that it can change with a version of the engine.
func newConfigEntry() *configEntry {
	return &configEntry{RequestTimeout: defaultRequestTimeout, TokenRequestLimit: defaultRequestLimit}
}

// decodeConfig reads a stored entry. It checks what is needed to use the entry
// safely, and leaves the other rules to writes: a rule that is newer than the
// entry must not take a live token from its readers. A number that can't be
// used becomes the default. The exchange refuses a token_url that is not safe.
func decodeConfig(data []byte) (*configEntry, error) {
	c, fallback := newConfigEntry(), newConfigEntry()
	var fields map[string]any
	if json.Unmarshal(data, &fields) != nil {
		return nil, errors.New("the entry is not valid JSON")
	}
	_ = json.Unmarshal(data, c) // leaves a field of the wrong type as it is
	if c.Generation == "" {
		return nil, errors.New("its generation is missing")
	}
	for _, f := range configFields {
		value := fields[f.name]
		if _, isText := value.(string); f.issuedFor && value != nil && !isText {
			return nil, fmt.Errorf("its %s is not a string", f.name)
		}
		if !f.issuedFor && f.check(c) != nil {
			f.copy(c, fallback)
		}
	}
	if c.ClientID == "" || c.ClientSecret == "" {
		return nil, errors.New("its client_id or client_secret is missing")
	}
	return c, nil
}

// check validates the field's value in an entry.
func (f configField) check(c *configEntry) error {
	var n int64
	switch p := f.value(c).(type) {
	case *string:
		return f.text(f.name, *p)
	case *int64:
		n = *p
	case *int:
		n = int64(*p)
	}
	if !f.valid(n) {
		return fmt.Errorf("%s must be %s", f.name, f.rule)
	}
	return nil
}

// copy gives the field in an entry the value that it has in another.
func (f configField) copy(to, from *configEntry) {
	reflect.ValueOf(f.value(to)).Elem().Set(reflect.ValueOf(f.value(from)).Elem())
}

// shown is the value of the field as a read shows it.
func (f configField) shown(c *configEntry) any {
	value := reflect.ValueOf(f.value(c)).Elem().Interface()
	if value == "" && f.fallback != nil {
		return f.fallback
	}
	return value
}

// set changes the field to a value from a request. Text must be a JSON string:
// numbers become floats on the way to a plugin, which would change a secret.
func (f configField) set(c *configEntry, value any) (err error) {
	var n int64
	switch p := f.value(c).(type) {
	case *string:
		text, ok := value.(string)
		if !ok {
			return fmt.Errorf("%s must be a string", f.name)
		}
		*p = text
	case *int64:
		if n, err = seconds(value); err == nil {
			*p = n
		}
	case *int:
		if n, err = wholeNumber(value); err == nil {
			*p = int(n)
		}
	}
	if err != nil {
		return fmt.Errorf("%s must be %w", f.name, err)
	}
	return nil
}

// tokenRequest is what the exchange needs of the settings.
func (c *configEntry) tokenRequest() tokenRequest {
	return tokenRequest{
		tokenURL:     cmp.Or(c.TokenURL, defaultTokenURL),
		clientID:     c.ClientID,
		clientSecret: c.ClientSecret,
		audience:     cmp.Or(c.Audience, defaultAudience),
		caCert:       c.CACert,
		timeout:      time.Duration(c.RequestTimeout) * time.Second,
	}
}

// schedule is the rotation_schedule; nil if there is none.
func (c *configEntry) schedule() *cron.SpecSchedule {
	if c.RotationSchedule == "" {
		return nil
	}
	schedule, _ := parseSchedule(c.RotationSchedule) // checked when it was written or loaded
	return schedule
}

// changed returns the entry (nil: none yet) with the fields of a request made at
// now, validated, and with a new generation where they change what a token is
// issued for. The entry itself stays as it is. The error is a *userError.
func (c *configEntry) changed(data map[string]any, now time.Time) (*configEntry, error) {
	next := newConfigEntry()
	if c != nil {
		*next = *c
	}
	if err := next.setFields(data); err != nil {
		return nil, &userError{err.Error()}
	}
	if err := next.chooseRotation(c, data, now); err != nil {
		return nil, err
	}
	if c == nil || next.ClientSecret != c.ClientSecret {
		next.SecretUpdated = now.UTC().Truncate(time.Second)
	}
	issuedForSame := c != nil
	for _, f := range configFields {
		if err := f.check(next); err != nil {
			return nil, &userError{err.Error()}
		}
		if c == nil || f.shown(c) == f.shown(next) {
			continue
		}
		if _, given := data[fieldClientSecret]; f.destination && !given {
			return nil, &userError{"changing token_url or ca_cert requires client_secret in the same request"}
		}
		if f.issuedFor {
			issuedForSame = false
		}
	}
	if !issuedForSame {
		next.Generation = rand.Text()
	}
	return next, nil
}

// chooseRotation resolves the conflict between rotation_period and rotation_schedule: a request
// that sets one clears the other. old is the entry before the request, or nil.
func (c *configEntry) chooseRotation(old *configEntry, data map[string]any, now time.Time) error {
	_, period := data[fieldRotationPeriod]
	_, schedule := data[fieldRotationSchedule]
	switch {
	case period && schedule && c.RotationPeriod != 0 && c.RotationSchedule != "":
		return &userError{"rotation_period and rotation_schedule are mutually exclusive; set only one"}
	case schedule && c.RotationSchedule != "":
		c.RotationPeriod = 0
	case period && c.RotationPeriod != 0:
		c.RotationSchedule = ""
	}
	switch {
	case c.RotationSchedule == "":
		c.ScheduleSince = 0
	case old == nil || c.RotationSchedule != old.RotationSchedule:
		c.ScheduleSince = now.Unix()
	}
	return nil
}

// setFields changes the fields that a request names. The error names the field
// and the rule and never quotes the value, which may be a secret in the wrong
// place. Unknown fields are left to the framework, which warns of them.
func (c *configEntry) setFields(data map[string]any) error {
	for _, f := range configFields {
		if value, given := data[f.name]; given {
			if err := f.set(c, value); err != nil {
				return err
			}
		}
	}
	if value, given := data[fieldVerify]; given {
		if _, err := parseutil.ParseBool(value); err != nil || value == "" {
			return errors.New("verify must be true or false")
		}
	}
	return nil
}

// wholeNumber reads a number as it arrives from JSON, the CLI or the plugin protocol. Text
// must be plain digits: the SDK understands fewer forms than strconv does, and quotes
// what it does not.
func wholeNumber(value any) (int64, error) {
	text := fmt.Sprint(value)
	if float, ok := value.(float64); ok {
		text = strconv.FormatFloat(float, 'f', -1, 64)
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || text != strconv.FormatInt(n, 10) {
		return 0, errors.New("a whole number")
	}
	return n, nil
}

// seconds reads a duration: a number of seconds, or text such as 90m or 2d. It accepts
// what Vault's own durations accept, in whole seconds.
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

// checkRequired is checkText for a field that has no default.
func checkRequired(field, value string) error {
	if value == "" {
		return fmt.Errorf("%s is required and must not be empty", field)
	}
	return checkText(field, value)
}

// checkText takes one line of printable text, and finds what files and editors add to
// it: a newline at the end, a byte order mark, spaces that can't be seen. U+FFFD is
// what Vault makes of bytes that are not UTF-8.
func checkText(field, value string) error {
	switch {
	case len(value) > maxFieldSize:
		return fmt.Errorf("%s must be at most %d bytes long", field, maxFieldSize)
	case strings.ContainsRune(value, utf8.RuneError):
		return fmt.Errorf("%s must be valid UTF-8", field)
	case strings.HasSuffix(value, "\n"):
		return fmt.Errorf("%s must not end in a newline; check the file that it was read from", field)
	case value != strings.TrimSpace(value) || strings.ContainsFunc(value, notPrintable):
		return fmt.Errorf("%s must be printable text without leading or trailing spaces, tabs or newlines", field)
	}
	return nil
}

// notPrintable is for strings.ContainsFunc.
func notPrintable(r rune) bool { return !unicode.IsPrint(r) }

// checkURL leaves "", the default, to checkText.
func checkURL(field, value string) error {
	if err := checkText(field, value); err != nil || value == "" {
		return err
	}
	return checkTokenURL(value)
}

// checkSchedule leaves "", no schedule, to checkText.
func checkSchedule(field, value string) error {
	if err := checkText(field, value); err != nil || value == "" {
		return err
	}
	_, err := parseSchedule(value)
	return err
}

// checkCertificates takes one or more PEM certificates. Text before them, such as a
// bundle's comments, does no harm. A block that can't be decoded does: encoding/pem
// skips it, and the operator would miss a root.
func checkCertificates(field, value string) error {
	if len(value) > maxCACertSize {
		return fmt.Errorf("%s must be at most %d bytes long", field, maxCACertSize)
	}
	for rest := []byte(value); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		all := rest
		block, rest = pem.Decode(all)
		read := all[:len(all)-len(rest)]
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) != 0 || // crypto/x509 skips one with headers
			bytes.Count(read, []byte("-----BEGIN")) != 1 || bytes.Count(read, []byte("-----END")) != 1 {
			return fmt.Errorf("%s must contain PEM certificates and nothing else", field)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("%s contains a certificate that can't be parsed", field)
		}
	}
	return nil
}
