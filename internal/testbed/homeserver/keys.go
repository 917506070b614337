package homeserver

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"
)

// oneTimeKey is a one-time or fallback key.
type oneTimeKey struct {
	id        string // algorithm:key id
	key       json.RawMessage
	algorithm string
	used      bool // fallback keys only: claimed at least once
}

func (s *Server) keysUpload(c *call) (any, error) {
	var req struct {
		DeviceKeys json.RawMessage            `json:"device_keys"`
		OneTime    map[string]json.RawMessage `json:"one_time_keys"`
		Fallback   map[string]json.RawMessage `json:"fallback_keys"`
	}
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	if c.from.device == "" {
		return nil, bad("M_UNKNOWN", "To upload keys, you must pass device_id when authenticating")
	}
	if err := checkKeys(c, req.DeviceKeys, req.OneTime, req.Fallback); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[c.from.user]
	d := u.devices[c.from.device]
	for _, keyID := range slices.Sorted(maps.Keys(req.OneTime)) {
		if err := d.addOneTime(keyID, req.OneTime[keyID]); err != nil {
			return nil, err
		}
	}
	for keyID, key := range req.Fallback {
		d.setFallback(keyID, key)
	}
	if req.DeviceKeys != nil && !sameJSON(d.keys, req.DeviceKeys) {
		d.keys = req.DeviceKeys
		u.keysChanged = s.advance()
	}
	return map[string]any{"one_time_key_counts": d.counts()}, nil
}

// checkKeys refuses what Synapse's KeyUploadRequestBody refuses.
func checkKeys(c *call, deviceKeys json.RawMessage, groups ...map[string]json.RawMessage) error {
	if deviceKeys != nil {
		var k struct {
			UserID   id.UserID   `json:"user_id"`
			DeviceID id.DeviceID `json:"device_id"`
		}
		if err := json.Unmarshal(deviceKeys, &k); err != nil || string(deviceKeys) == "null" {
			return bad("M_BAD_JSON", "device_keys is not an object")
		}
		if k.UserID != c.from.user {
			return bad("M_BAD_JSON", "Provided `user_id` in `device_keys` does not match that of the authenticated user")
		}
		if k.DeviceID != c.from.device {
			return bad("M_BAD_JSON", "Provided `device_id` in `device_keys` does not match that of the authenticated user device")
		}
	}
	for _, keys := range groups {
		for keyID, key := range keys {
			var k struct {
				Key        string         `json:"key"`
				Signatures map[string]any `json:"signatures"`
			}
			if err := json.Unmarshal(key, &k); err != nil || k.Key == "" || k.Signatures == nil || !strings.Contains(keyID, ":") {
				return bad("M_BAD_JSON", "%s needs key and signatures", keyID)
			}
		}
	}
	return nil
}

func (d *device) addOneTime(keyID string, key json.RawMessage) error {
	for _, k := range d.oneTime {
		if k.id == keyID && !sameJSON(k.key, key) {
			return bad("M_UNKNOWN", "One time key %s already exists. Old key: %s; new key: %s", keyID, k.key, key)
		}
		if k.id == keyID {
			return nil
		}
	}
	algorithm, _, _ := strings.Cut(keyID, ":")
	d.oneTime = append(d.oneTime, oneTimeKey{id: keyID, key: key, algorithm: algorithm})
	return nil
}

func (d *device) setFallback(keyID string, key json.RawMessage) {
	algorithm, _, _ := strings.Cut(keyID, ":")
	k := oneTimeKey{id: keyID, key: key, algorithm: algorithm}
	for i, old := range d.fallback {
		if old.algorithm == algorithm {
			k.used = old.used && old.id == keyID && sameJSON(old.key, key)
			d.fallback[i] = k
			return
		}
	}
	d.fallback = append(d.fallback, k)
}

// claim takes the oldest one-time key, or the fallback key again and again.
func (d *device) claim(algorithm string) (oneTimeKey, bool) {
	is := func(k oneTimeKey) bool { return k.algorithm == algorithm }
	if i := slices.IndexFunc(d.oneTime, is); i >= 0 {
		k := d.oneTime[i]
		d.oneTime = slices.Delete(d.oneTime, i, i+1)
		return k, true
	}
	if i := slices.IndexFunc(d.fallback, is); i >= 0 {
		d.fallback[i].used = true
		return d.fallback[i], true
	}
	return oneTimeKey{}, false
}

func (d *device) counts() map[string]int {
	counts := map[string]int{"signed_curve25519": 0}
	for _, k := range d.oneTime {
		counts[k.algorithm]++
	}
	return counts
}

func (d *device) unusedFallback() []string {
	list := []string{}
	for _, k := range d.fallback {
		if !k.used {
			list = append(list, k.algorithm)
		}
	}
	return list
}

func (s *Server) keysQuery(c *call) (any, error) {
	var req struct {
		DeviceKeys map[id.UserID][]id.DeviceID `json:"device_keys"`
	}
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found, failures := map[id.UserID]map[id.DeviceID]any{}, map[string]any{}
	cross := map[string]map[id.UserID]json.RawMessage{"master_key": {}, "self_signing_key": {}, "user_signing_key": {}}
	for uid, wanted := range req.DeviceKeys {
		if uid.Homeserver() != s.cfg.Domain {
			failures[uid.Homeserver()] = map[string]any{"status": 503, "message": "Failed to send request"}
			continue
		}
		found[uid] = map[id.DeviceID]any{}
		u := s.users[uid]
		if u == nil {
			continue
		}
		for dev, d := range u.devices {
			if d.keys != nil && (len(wanted) == 0 || slices.Contains(wanted, dev)) {
				found[uid][dev] = d.keys
			}
		}
		for usage, key := range u.crossKeys {
			if usage != "user_signing_key" || uid == c.from.user {
				cross[usage][uid] = key
			}
		}
	}
	return map[string]any{
		"device_keys": found, "failures": failures, "master_keys": cross["master_key"],
		"self_signing_keys": cross["self_signing_key"], "user_signing_keys": cross["user_signing_key"],
	}, nil
}

func (s *Server) keysClaim(c *call) (any, error) {
	var req struct {
		OneTime map[id.UserID]map[id.DeviceID]string `json:"one_time_keys"`
	}
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	claimed := map[id.UserID]map[id.DeviceID]map[string]json.RawMessage{}
	for uid, devices := range req.OneTime {
		for dev, algorithm := range devices {
			if s.users[uid] == nil || s.users[uid].devices[dev] == nil {
				continue
			}
			k, ok := s.users[uid].devices[dev].claim(algorithm)
			if !ok {
				continue
			}
			if claimed[uid] == nil {
				claimed[uid] = map[id.DeviceID]map[string]json.RawMessage{}
			}
			claimed[uid][dev] = map[string]json.RawMessage{k.id: k.key}
		}
	}
	return map[string]any{"one_time_keys": claimed, "failures": map[string]any{}}, nil
}

func (s *Server) crossSigningUpload(c *call) (any, error) {
	var req map[string]json.RawMessage
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[c.from.user]
	for _, usage := range []string{"master_key", "self_signing_key", "user_signing_key"} {
		if req[usage] != nil {
			u.crossKeys[usage] = req[usage]
		}
	}
	u.keysChanged = s.advance()
	return nil, nil
}

// signaturesUpload replaces device keys by the signed ones; signatures are not checked.
func (s *Server) signaturesUpload(c *call) (any, error) {
	var req map[id.UserID]map[id.DeviceID]json.RawMessage
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[c.from.user]
	for dev, keys := range req[c.from.user] {
		if d := u.devices[dev]; d != nil {
			d.keys = keys
			u.keysChanged = s.advance()
		}
	}
	return map[string]any{"failures": map[string]any{}}, nil
}

// OneTimeKeys returns how many keys of signed_curve25519 a device has left.
func (s *Server) OneTimeKeys(uid id.UserID, dev id.DeviceID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.users[uid]; u != nil && u.devices[dev] != nil {
		return u.devices[dev].counts()["signed_curve25519"]
	}
	return 0
}

// DrainOneTimeKeys is somebody who claims all one-time keys of a device.
func (s *Server) DrainOneTimeKeys(uid id.UserID, dev id.DeviceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.users[uid]; u != nil && u.devices[dev] != nil {
		u.devices[dev].oneTime = nil
	}
}
