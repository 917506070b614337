// Bundles the pages into dist/ with everything they fetch, so that a plain file server is enough.
import { build } from "esbuild";
import { cp, mkdir, rm } from "node:fs/promises";

const modules = new URL("node_modules/", import.meta.url).pathname;
await rm("dist", { recursive: true, force: true });
await mkdir("dist/olm", { recursive: true });

await build({
    entryPoints: ["hydrogen.js", "jssdk.js", "jssdk36.js", "app.js"],
    outdir: "dist",
    bundle: true,
    format: "esm",
    target: "es2022",
    define: { global: "globalThis", "process.env.NODE_ENV": '"production"' },
    alias: { crypto: "./empty.js", path: "./empty.js", fs: "./empty.js" },
    logLevel: "warning",
});

for (const name of ["lab.js", "hydrogen.html", "jssdk.html", "jssdk36.html", "app.html"]) await cp(name, `dist/${name}`);
for (const name of ["olm.js", "olm_legacy.js", "olm.wasm"]) await cp(`${modules}@matrix-org/olm/${name}`, `dist/olm/${name}`);
await cp(`${modules}hydrogen-view-sdk/asset-build/assets`, "dist/hydrogen", { recursive: true });
await cp(`${modules}hydrogen-view-sdk/lib-build/sw.js`, "dist/sw.js");
await cp(`${modules}@matrix-org/matrix-sdk-crypto-wasm/pkg`, "dist/pkg", { recursive: true });
