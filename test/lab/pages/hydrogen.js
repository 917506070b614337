import { Client, FeatureFlag, FeatureSet, LoadStatus, LocalMedia, Platform, createNavigation } from "hydrogen-view-sdk";
import { capture, capturedMessages, messages, note, until } from "./common.js";

let platform, client, calls, current, timeline;

const assetPaths = {
    downloadSandbox: "/hydrogen/download-sandbox.html",
    worker: "/hydrogen/main.js",
    olm: { wasm: "/olm/olm.wasm", legacyBundle: "/olm/olm_legacy.js", wasmBundle: "/olm/olm.js" },
    serviceWorker: "/sw.js", // without it loading a session dereferences a null update service
};

function watchMessages() {
    const encrypt = calls.groupCallOptions.encryptDeviceMessage;
    calls.groupCallOptions.encryptDeviceMessage = async (room, user, device, message, log) => {
        const sealed = await encrypt(room, user, device, message, log);
        // undefined: sent plain; an empty list: lost without a word.
        note(">", message.type, user, message.content, !sealed ? "plain" : sealed.length ? "olm" : "LOST");
        capture(">", message.type, user, message.content);
        return sealed;
    };
    const handle = calls.handleDeviceMessage.bind(calls);
    calls.handleDeviceMessage = (message, user, device, log) => {
        note("<", message.type, user, message.content, calls.calls.get(message.content.conf_id) ? "" : "UNKNOWN CALL");
        capture("<", message.type, user, message.content);
        return handle(message, user, device, log);
    };
}

function voices() {
    const all = [];
    for (const member of current?.members.values() ?? []) {
        const stream = member.remoteMedia?.userMedia;
        if (stream) {
            window.lab?.assign(stream.id, member.userId, member.deviceId);
            all.push({ user: member.userId, device: member.deviceId, stream: stream.id, connected: member.isConnected });
        }
    }
    return all;
}
setInterval(voices, 200);

window.peer = {
    kind: "hydrogen",

    async start(login) {
        if (login.voice) await window.lab.speak(login.voice);
        platform = new Platform({ container: document.body, assetPaths, config: {}, options: { development: false } });
        const navigation = createNavigation();
        platform.setNavigation(navigation);
        await platform.init();
        client = new Client(platform, new FeatureSet().withFeature(FeatureFlag.Calls));
        const known = (await platform.sessionInfoStorage.getAll())[0];
        if (known) {
            client.startWithExistingSession(known.id); // a reload: new keys for the same device would be refused by everyone
        } else {
            client.startWithAuthData({ accessToken: login.token, deviceId: login.device, userId: login.user, homeserver: login.homeserver });
        }
        await client.loadStatus.waitFor((s) => s === LoadStatus.Ready || s === LoadStatus.Error).promise;
        if (client.loadStatus.get() === LoadStatus.Error) throw client.loadError;
        calls = client.session.callHandler;
        watchMessages();
        if (known) {
            await calls.loadCalls("m.ring");
            await calls.loadCalls("m.prompt");
        }
    },

    ready: (room) => until(`room ${room} in sync`, () => client.session.rooms.get(room)).then(() => true),

    async createCall(room, type = "m.voice", intent = "m.ring") {
        await this.ready(room);
        return (await calls.createCall(room, type, "lab", intent)).id;
    },

    // waitCall returns the id of the room's call; somebody else made it.
    waitCall: (room, seconds) => until(`a call in ${room}`, () => {
        for (const call of calls.calls.values()) if (call.roomId === room && !call.isTerminated) return call.id;
    }, seconds),

    async join(room, id, { audio = true, video = false } = {}) {
        current = await until(`call ${id}`, () => calls.calls.get(id));
        await until(`call ${id} created`, () => current._state === "created");
        const stream = await platform.mediaDevices.getMediaTracks(audio, video);
        await current.join(new LocalMedia().withUserMedia(stream));
    },

    async mute(quiet) {
        if (current.muteSettings.microphone !== quiet) await current.setMuted(current.muteSettings.toggleMicrophone());
    },

    async camera(on) {
        const stream = await platform.mediaDevices.getMediaTracks(true, on);
        await current.setMedia(current.localMedia.withUserMedia(stream));
    },

    // crossInvites makes the client call whoever is about to call it, as one does that has the order of ids wrong. The invite
    // that has come is looked at only when the client's own is out, so that the two cross. What follows is hydrogen's glare.
    crossInvites(id) {
        let came, sent;
        const arrival = new Promise((done) => { came = done; });
        let queue = new Promise((done) => { sent = done; });
        const connect = current.connectToMember.bind(current);
        current.connectToMember = async (member, joined, log) => {
            const connected = connect(member, joined, log);
            arrival.then(async () => {
                const connection = member.connection;
                connection.peerCall = member._createPeerCall(id);
                await connection.peerCall.call(connection.localMedia, connection.localMuteSettings, connection.logItem);
                sent();
            });
            return connected;
        };
        const handle = calls.handleDeviceMessage;
        calls.handleDeviceMessage = (message, user, device) => {
            if (message.type === "m.call.invite") came();
            queue = queue.then(() => calls.options.logger.run("held back", (log) => handle(message, user, device, log)));
        };
    },

    // pressWhileAnswering switches the microphone on between the client's answer and the moment, 200 ms later, in which hydrogen
    // reads what it has answered: by then the offer that adds the microphone has taken the answer's place.
    async pressWhileAnswering() {
        const media = current.localMedia.withUserMedia(await platform.mediaDevices.getMediaTracks(true, true));
        const connect = current.connectToMember.bind(current);
        current.connectToMember = (member, joined, log) => {
            const create = member._createPeerCall.bind(member);
            member._createPeerCall = (id) => {
                const call = create(id), delay = call.delay.bind(call);
                call.delay = async (ms) => { // the first one is the answer's
                    call.delay = delay;
                    current.setMedia(media);
                    await Promise.all([delay(ms), until("an offer", () => call.peerConnection.signalingState === "have-local-offer")]);
                };
                return call;
            };
            return connect(member, joined, log);
        };
    },

    say: async (room, text) => { await client.session.rooms.get(room).sendEvent("m.room.message", { msgtype: "m.text", body: text }); },
    // notices are those of a room as a person reads them, the newest last; hydrogen shows an edit as another one.
    async notices(room) {
        if (!timeline) {
            timeline = await client.session.rooms.get(room).openTimeline();
            const nothing = () => {};
            timeline.entries.subscribe({ onAdd: nothing, onUpdate: nothing, onRemove: nothing, onMove: nothing, onReset: nothing });
        }
        return [...timeline.entries]
            .filter((entry) => entry.eventType === "m.room.message" && entry.content.msgtype === "m.notice")
            .map((entry) => ({ id: entry.id, body: entry.content.body, encrypted: entry.isEncrypted }));
    },
    react: async (room, event, key) => {
        await client.session.rooms.get(room).sendEvent("m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: event, key } });
    },

    async memberName(room, user) {
        const member = await client.session.rooms.get(room).observeMember(user);
        return member?.get()?.name ?? "";
    },

    leave: () => current.leave(),
    end: () => current.terminate(),
    voices,
    capturedMessages,

    // state describes the page; brief leaves out what is costly to ask for again and again.
    async state(brief = false) {
        const members = [...(current?.members.values() ?? [])].map((m) => ({
            user: m.userId, device: m.deviceId, session: m.sessionId, connected: m.isConnected, error: m.error ? String(m.error) : undefined,
            muted: m.remoteMuteSettings?.microphone, peerCall: m.connection?.peerCall?.state,
        }));
        return {
            kind: this.kind, call: current?.id, intent: current?.intent, state: current?._state, terminated: current?.isTerminated, inRoomCalls: [...(calls?.calls.keys() ?? [])],
            error: current?.error ? String(current.error) : undefined,
            members, ...(brief ? {} : { connections: await window.lab?.stats(), levels: window.lab?.levels(), messages: messages() }),
        };
    },
};
