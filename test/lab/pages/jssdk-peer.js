// The driver over matrix-js-sdk, the same for both versions; a page passes in the SDK and how to make its client.
import { capture, capturedMessages, messages, note, until } from "./common.js";

const ended = "ended";

export function jssdkPeer(kind, sdk, connect) {
    let client, current;

    function watchMessages() {
        const send = client.encryptAndSendToDevices?.bind(client); // 36
        if (send) {
            client.encryptAndSendToDevices = (devices, message) => {
                for (const d of devices) {
                    note(">", message.type, d.userId, message.content, "olm");
                    capture(">", message.type, d.userId, message.content);
                }
                return send(devices, message);
            };
        }
        const plain = client.queueToDevice?.bind(client);
        if (plain) {
            client.queueToDevice = (batch) => {
                if (batch.eventType.startsWith("m.call")) {
                    for (const m of batch.batch) {
                        note(">", batch.eventType, m.userId, m.payload, "plain");
                        capture(">", batch.eventType, m.userId, m.payload);
                    }
                }
                return plain(batch);
            };
        }
        const rawSend = client.sendToDevice.bind(client);
        client.sendToDevice = (type, contents, txn) => {
            if (type.startsWith("m.call")) {
                for (const [user, devices] of contents) {
                    for (const content of devices.values()) {
                        note(">", type, user, content, "plain");
                        capture(">", type, user, content);
                    }
                }
            }
            return rawSend(type, contents, txn);
        };
        client.on("toDeviceEvent", (event) => {
            if (!event.getType().startsWith("m.call") && event.getType() !== "m.room.encrypted") return;
            note("<", event.getType(), event.getSender(), event.getContent());
            capture("<", event.getType(), event.getSender(), event.getContent());
        });
    }

    function voices() {
        const all = [];
        for (const feed of current?.userMediaFeeds ?? []) {
            if (feed.isLocal()) continue;
            window.lab?.assign(feed.stream.id, feed.userId, feed.deviceId);
            all.push({ user: feed.userId, device: feed.deviceId, stream: feed.stream.id, muted: feed.isAudioMuted() });
        }
        return all;
    }
    setInterval(voices, 200);

    window.peer = {
        kind,

        async start(login) {
            if (login.voice) await window.lab.speak(login.voice);
            client = await connect(login);
            watchMessages();
            client.on("GroupCall.incoming", (call) => note("*", "GroupCall.incoming", call.groupCallId, {}));
            await client.startClient({ initialSyncLimit: 1 });
            await until("first sync", () => ["SYNCING", "PREPARED"].includes(client.getSyncState()));
        },

        async ready(room) {
            await until(`room ${room} in sync`, () => client.getRoom(room));
            await client.waitUntilRoomReadyForGroupCalls(room);
            return true;
        },

        async createCall(room, type = "m.voice", intent = "m.prompt") {
            await this.ready(room);
            current = await client.createGroupCall(room, type, false, intent);
            return current.groupCallId;
        },

        async waitCall(room, seconds) {
            await this.ready(room);
            return until(`a call in ${room}`, () => {
                const call = client.getGroupCallForRoom(room);
                return call && call.state !== ended ? call.groupCallId : undefined;
            }, seconds);
        },

        async join(room, id) {
            await this.ready(room);
            // getGroupCallForRoom may still hold an older call of the room.
            current = await until(`call ${id}`, () => {
                const call = client.getGroupCallForRoom(room);
                return call?.groupCallId === id ? call : undefined;
            });
            current.on("group_call_error", (error) => note("!", "group_call_error", String(error)));
            await current.enter();
        },

        mute: (quiet) => current.setMicrophoneMuted(quiet),

        async camera(on) {
            if (!await current.setLocalVideoMuted(!on)) throw new Error("the camera cannot be switched");
        },

        async shareScreen(on) {
            if (await current.setScreensharingEnabled(on, { throwOnFail: true }) !== on) throw new Error("the screen cannot be shared");
        },

        // crossInvites makes the client call whoever is about to call it, as one does that has the order of ids wrong. The invite
        // that has come is looked at only when the client's own is on its way, so that the two cross. What follows is the
        // SDK's glare. It makes up the call id itself.
        crossInvites() {
            current.wantsOutgoingCall = (user) => user !== client.getUserId();
            const handler = client.callEventHandler;
            const handle = handler.handleCallEvent.bind(handler);
            handler.handleCallEvent = async (event) => {
                if (event.getType() === "m.call.invite") {
                    await until("its own invite", () => capturedMessages().some((m) => m.direction === ">" && m.type === "m.call.invite"));
                }
                return handle(event);
            };
        },

        pressDigit: (digit) => current.forEachCall((call) => call.sendDtmfDigit(digit)),

        say: (room, text) => client.sendTextMessage(room, text),
        // notices are those of a room as a person reads them, the newest last: decrypted, with what they were edited to.
        notices: (room) => client.getRoom(room).getLiveTimeline().getEvents()
            .filter((event) => event.getType() === "m.room.message" && event.getContent().msgtype === "m.notice" && !event.isRelation("m.replace"))
            .map((event) => ({ id: event.getId(), body: event.getContent().body, encrypted: event.isEncrypted() })),
        react: (room, event, key) => client.sendEvent(room, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: event, key } }),
        memberName: (room, user) => client.getRoom(room)?.getMember(user)?.name ?? "",

        leave: () => current.leave(),
        end: () => current.terminate(),
        voices,
        capturedMessages,

        // state describes the page; brief leaves out what is costly to ask for again and again.
        async state(brief = false) {
            const legs = [];
            const muted = new Map(voices().map((v) => [v.user + v.device, v.muted]));
            current?.forEachCall((c) => legs.push({
                user: c.getOpponentMember()?.userId ?? c.invitee, device: c.getOpponentDeviceId(), session: c.getOpponentSessionId(), id: c.callId,
                state: c.state, connected: c.state === "connected", hangup: c.hangupReason,
                muted: muted.get((c.getOpponentMember()?.userId ?? "") + c.getOpponentDeviceId()) ?? false,
                asserted: c.getRemoteAssertedIdentity(), dtmf: c.opponentSupportsDTMF(), transferable: c.opponentCanBeTransferred(),
            }));
            return {
                kind, call: current?.groupCallId, intent: current?.intent, state: current?.state, terminated: current?.state === ended,
                participants: [...(current?.participants ?? [])].map(([member, devices]) => `${member.userId} ${[...devices.keys()].join(",")}`),
                members: legs, ...(brief ? {} : { connections: await window.lab?.stats(), levels: window.lab?.levels(), messages: messages() }),
            };
        },
    };
}
