package synapse

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the admin API asks for it
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"
)

// User is an ordinary user with a device.
type User struct {
	UserID      id.UserID   `json:"user_id"`
	DeviceID    id.DeviceID `json:"device_id"`
	AccessToken string      `json:"access_token"`
	Password    string      `json:"-"`
}

// Register makes an ordinary user; its password is its name. Token and device come back at once.
// https://element-hq.github.io/synapse/latest/admin_api/register_api.html
func (s *Server) Register(ctx context.Context, name string) (User, error) {
	return RegisterAt(ctx, s.URL(), registrationSecret, name)
}

// RegisterAt does the same at any Synapse whose registration_shared_secret is known.
func RegisterAt(ctx context.Context, url, secret, name string) (User, error) {
	user, err := register(ctx, strings.TrimSuffix(url, "/")+"/_synapse/admin/v1/register", secret, name)
	if err != nil {
		return User{}, fmt.Errorf("register %s: %w", name, err)
	}
	return user, nil
}

func register(ctx context.Context, endpoint, secret, name string) (User, error) {
	var nonce struct {
		Nonce string `json:"nonce"`
	}
	if err := admin(ctx, http.MethodGet, endpoint, nil, &nonce); err != nil {
		return User{}, err
	}
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(strings.Join([]string{nonce.Nonce, name, name, "notadmin"}, "\x00")))
	user := User{Password: name}
	return user, admin(ctx, http.MethodPost, endpoint, map[string]any{
		"nonce": nonce.Nonce, "username": name, "password": name, "admin": false,
		"mac": hex.EncodeToString(mac.Sum(nil)),
	}, &user)
}

func admin(ctx context.Context, method, endpoint string, body, answer any) error {
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, endpoint, bytes.NewReader(content))
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	return json.Unmarshal(b, answer)
}
