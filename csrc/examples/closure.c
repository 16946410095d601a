/* A macro solver in C: three points, one exchange, one window. Usage: closure CASE.yaml CHANNEL */
#include <neuroscale/client.h>

#include <stdio.h>

int main(int argc, char** argv) {
    const int64_t ids[3] = {0, 1, 2};
    const double xy[6] = {0.0, 0.0, 1.0, 0.0, 2.0, 0.0};
    const double gradient[6] = {1.0, 0.0, 0.0, 1.0, 0.5, -0.5}, temperature[3] = {293.15, 300.0, 310.0};
    const char* const axes[2] = {"x", "y"};
    const double* const in[2] = {gradient, temperature};
    double flux[6];
    double* const out[1] = {flux};
    nsc_answer answer = {sizeof answer, out, NULL, NULL, NULL, NULL, 0};
    char why[1024] = "usage: closure CASE.yaml CHANNEL";
    nsc_session* s = NULL;
    if (argc < 3 || nsc_open(argv[1], argv[2], NULL, &s, why, sizeof why))
        return fprintf(stderr, "%s\n", why), 1;
    int failed = nsc_points(s, 3, ids, 2, xy, NULL) || nsc_input(s, "gradient", 2, axes, "K/m") ||
                 nsc_input(s, "temperature", 1, NULL, "K") || nsc_output(s, "flux", 2, axes, "W/m2") ||
                 nsc_connect(s) || nsc_exchange(s, 0.1, 0.1, 0, in, &answer) || nsc_commit(s) || nsc_finish(s);
    if (failed)
        fprintf(stderr, "%s\n", nsc_last_error(s));
    for (int i = 0; i < 3 && !failed; ++i)
        printf("%.17g %.17g\n", flux[2 * i], flux[2 * i + 1]);
    nsc_close(&s);
    return failed;
}
