// The whole hydrogen application, from the same npm package, with group calls switched on and our homeserver filled in.
import { FeatureFlag, FeatureSet, Platform, RootViewModel, createNavigation, createRouter } from "hydrogen-view-sdk";

const assetPaths = {
    downloadSandbox: "/hydrogen/download-sandbox.html",
    worker: "/hydrogen/main.js",
    olm: { wasm: "/olm/olm.wasm", legacyBundle: "/olm/olm_legacy.js", wasmBundle: "/olm/olm.js" },
    serviceWorker: "/sw.js",
};

async function main() {
    const defaults = await (await fetch("/app.json")).json();
    const platform = new Platform({
        container: document.body, assetPaths, config: { defaultHomeServer: defaults.homeserver }, options: { development: false },
    });
    const features = new FeatureSet().withFeature(FeatureFlag.Calls);
    await features.store(platform.settingsStorage);
    const navigation = createNavigation();
    platform.setNavigation(navigation);
    await platform.init();
    const urlRouter = createRouter({ navigation, history: platform.history });
    urlRouter.attach();
    const vm = new RootViewModel({ platform, urlRouter, navigation, features });
    await vm.load();
    platform.createAndMountRootView(vm);
}

main();
