package homeserver

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"
)

// user is an account.
type user struct {
	id          id.UserID
	profile     map[string]string // displayname, avatar_url
	devices     map[id.DeviceID]*device
	keysChanged int64 // position of the last change of any device's keys
	crossKeys   map[string]json.RawMessage
}

// device is one of a user's devices with its keys and its inbox.
type device struct {
	name     string
	keys     json.RawMessage // device_keys, nil = none uploaded
	oneTime  []oneTimeKey    // oldest first
	fallback []oneTimeKey    // one per algorithm
	inbox    []toDevice      // until confirmed
}

// User is what a client needs to act as an ordinary user.
type User struct {
	UserID      id.UserID
	DeviceID    id.DeviceID
	AccessToken string
}

// User makes an ordinary user with one device, or another device of an existing user.
func (s *Server) User(localpart string) User {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.addUser(id.NewUserID(localpart, s.cfg.Domain))
	return s.addSession(u, "")
}

func (s *Server) addUser(uid id.UserID) *user {
	if u := s.users[uid]; u != nil {
		return u
	}
	u := &user{
		id: uid, profile: map[string]string{"displayname": uid.Localpart()},
		devices: map[id.DeviceID]*device{}, crossKeys: map[string]json.RawMessage{},
	}
	s.users[uid] = u
	return u
}

func (s *Server) addSession(u *user, dev id.DeviceID) User {
	if dev == "" {
		dev = id.DeviceID(fmt.Sprintf("DEVICE%03d", len(s.tokens)+1))
	}
	if u.devices[dev] == nil {
		u.devices[dev] = &device{}
	}
	token := fmt.Sprintf("token-%d-%s", len(s.tokens)+1, u.id.Localpart())
	s.tokens[token] = session{u.id, dev}
	return User{u.id, dev, token}
}

// identify finds out who asks. Caller holds mu.
func (s *Server) identify(r *http.Request) (requester, error) {
	token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !found || token == "" {
		return requester{}, &Error{Status: http.StatusUnauthorized, Code: "M_MISSING_TOKEN", Text: "Missing access token"}
	}
	if sess, ok := s.tokens[token]; ok {
		return requester{user: sess.user, device: sess.device, token: token}, nil
	}
	for _, as := range s.services {
		if as.reg.AppToken == token {
			return s.masquerade(as, r)
		}
	}
	return requester{}, &Error{
		Status: http.StatusUnauthorized, Code: "M_UNKNOWN_TOKEN",
		Text: "Invalid access token passed.", SoftLogout: new(bool),
	}
}

// masquerade applies user_id and device_id (MSC4326). The legacy org.matrix.msc3202.device_id is not read.
func (s *Server) masquerade(as *AppService, r *http.Request) (requester, error) {
	query := r.URL.Query()
	from := requester{user: as.sender, service: as, token: as.reg.AppToken}
	if uid := id.UserID(query.Get("user_id")); uid != "" && uid != as.sender {
		switch {
		case !as.owns(uid):
			return from, forbidden("Application service cannot masquerade as this user (%s).", uid)
		case s.users[uid] == nil:
			return from, forbidden("Application service has not registered this user (%s)", uid)
		}
		from.user = uid
	}
	if dev := id.DeviceID(query.Get("device_id")); dev != "" {
		if s.users[from.user].devices[dev] == nil {
			return from, bad("M_UNKNOWN_DEVICE",
				"Application service trying to use a device that doesn't exist ('%s' for %s)", dev, from.user)
		}
		from.device = dev
	}
	return from, nil
}

func (s *Server) register(c *call) (any, error) {
	var req struct {
		Type         string `json:"type"`
		Username     string `json:"username"`
		InhibitLogin bool   `json:"inhibit_login"`
	}
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	token := strings.TrimPrefix(c.Header.Get("Authorization"), "Bearer ")
	i := slices.IndexFunc(s.services, func(as *AppService) bool { return as.reg.AppToken == token })
	uid := id.NewUserID(req.Username, s.cfg.Domain)
	switch {
	case req.Type != "m.login.application_service" || i < 0:
		return nil, forbidden("Registration has been disabled. Only m.login.application_service registrations are allowed.")
	case !req.InhibitLogin:
		return nil, bad("M_APPSERVICE_LOGIN_UNSUPPORTED",
			"This appservice has MSC4190 enabled, so the inhibit_login parameter must be set to true.")
	case !s.services[i].owns(uid):
		return nil, bad("M_EXCLUSIVE", "Invalid user localpart for this application service.")
	case s.users[uid] != nil:
		return nil, bad("M_USER_IN_USE", "User ID already taken.")
	}
	s.addUser(uid)
	return map[string]any{"user_id": uid, "home_server": s.cfg.Domain}, nil
}

// login makes a new device for an ordinary user whose password is the localpart.
func (s *Server) login(c *call) (any, error) {
	var req struct {
		Type       string                `json:"type"`
		Identifier struct{ User string } `json:"identifier"`
		Password   string                `json:"password"`
		DeviceID   id.DeviceID           `json:"device_id"`
	}
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	if req.Type == "m.login.application_service" {
		return nil, bad("M_APPSERVICE_LOGIN_UNSUPPORTED", "This appservice has MSC4190 enabled, so it can't login.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	localpart, _, _ := strings.Cut(strings.TrimPrefix(req.Identifier.User, "@"), ":")
	u := s.users[id.NewUserID(localpart, s.cfg.Domain)]
	if req.Type != "m.login.password" || u == nil || req.Password != localpart {
		return nil, forbidden("Invalid username or password")
	}
	sess := s.addSession(u, req.DeviceID)
	return map[string]any{"user_id": sess.UserID, "device_id": sess.DeviceID, "access_token": sess.AccessToken}, nil
}

func (s *Server) whoami(c *call) (any, error) {
	body := map[string]any{"user_id": c.from.user, "is_guest": false}
	if c.from.device != "" {
		body["device_id"] = c.from.device
	}
	return body, nil
}

func (s *Server) listDevices(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []any{}
	devices := s.users[c.from.user].devices
	for _, dev := range slices.Sorted(maps.Keys(devices)) {
		list = append(list, map[string]any{"device_id": dev, "display_name": devices[dev].name})
	}
	return map[string]any{"devices": list}, nil
}

func (s *Server) getDevice(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dev := id.DeviceID(c.PathValue("device"))
	d := s.users[c.from.user].devices[dev]
	if d == nil {
		return nil, notFound("Not found")
	}
	return map[string]any{"user_id": c.from.user, "device_id": dev, "display_name": d.name}, nil
}

// putDevice renames; an application service may also create (MSC4190).
func (s *Server) putDevice(c *call) (any, error) {
	var req struct {
		Name string `json:"display_name"`
	}
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	devices := s.users[c.from.user].devices
	dev := id.DeviceID(c.PathValue("device"))
	if d := devices[dev]; d != nil {
		d.name = req.Name
		return nil, nil
	}
	if c.from.service == nil {
		return nil, notFound("Not found")
	}
	devices[dev] = &device{name: req.Name}
	return created{}, nil
}

func (s *Server) deleteDevice(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dev := id.DeviceID(c.PathValue("device"))
	if c.from.service == nil {
		return nil, &Error{Status: http.StatusUnauthorized, Code: "M_FORBIDDEN", Text: "user-interactive authentication is not part of this test double"}
	}
	s.removeDevice(s.users[c.from.user], dev)
	return nil, nil
}

// RemoveDevice is another client of the user, or an administrator, that logs a device out.
func (s *Server) RemoveDevice(uid id.UserID, dev id.DeviceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeDevice(s.users[uid], dev)
}

func (s *Server) removeDevice(u *user, dev id.DeviceID) {
	if u == nil || u.devices[dev] == nil {
		return
	}
	delete(u.devices, dev)
	maps.DeleteFunc(s.tokens, func(_ string, sess session) bool { return sess == session{u.id, dev} })
	u.keysChanged = s.advance()
}

func (s *Server) getProfile(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[id.UserID(c.PathValue("user"))]
	if u == nil {
		return nil, &Error{Status: http.StatusNotFound, Code: "M_UNKNOWN", Text: "No row found (profiles)"}
	}
	if field := c.PathValue("field"); field != "" {
		return map[string]string{field: u.profile[field]}, nil
	}
	return maps.Clone(u.profile), nil
}

// putProfile changes a global profile field and the member events of all joined rooms. Synapse does the latter a
// moment later, in the background.
func (s *Server) putProfile(c *call) (any, error) {
	var req map[string]string
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	field, uid := c.PathValue("field"), id.UserID(c.PathValue("user"))
	if uid != c.from.user {
		return nil, bad("M_FORBIDDEN", "Cannot set another user's %s", field)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[uid]
	if u.profile[field] == req[field] {
		return nil, nil
	}
	u.profile[field] = req[field]
	for _, rid := range slices.Sorted(maps.Keys(s.rooms)) {
		if r := s.rooms[rid]; r.membership(uid) == "join" {
			s.setMember(r, uid, uid, "join", "")
		}
	}
	return nil, nil
}
