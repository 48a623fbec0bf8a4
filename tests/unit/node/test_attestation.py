"""Quotes, against a directory that behaves as the kernel's does."""

import base64
import os
import shutil
import threading

import pytest

from hansa.node.isolation.attestation import REPORT_DATA_BYTES, NoQuote, ReportsDirectory, request_quote

DIGEST = bytes(range(32))


class FakeReports(ReportsDirectory):
    """A plain directory with a platform behind it: entries have their files at once, and go with them."""

    def __init__(self, path, *, has_certificates=True, intruder=False, quote=b"signed:"):
        super().__init__(path)
        self.has_certificates = has_certificates
        self.intruder = intruder
        self.quote = quote
        self.seen = []

    def open_entry(self, name):
        entry = super().open_entry(name)
        (entry / "inblob").touch()
        (entry / "provider").write_text("tdx_guest\n")
        (entry / "generation").write_text("1\n")
        if self.has_certificates:
            (entry / "auxblob").write_bytes(b"a chain")
        os.mkfifo(entry / "outblob")
        threading.Thread(target=self.answer, args=(entry,), daemon=True).start()
        return entry

    def answer(self, entry):
        with (entry / "outblob").open("wb") as out:  # opens when it is read, so the request has been written
            data = (entry / "inblob").read_bytes()
            self.seen.append(data)
            if self.intruder:
                (entry / "generation").write_text("2\n")
            out.write(self.quote + data if self.quote else b"")

    def close_entry(self, entry):
        shutil.rmtree(entry)


@pytest.mark.parametrize("has_certificates", [True, False])
def test_a_quote_is_about_the_binding_and_leaves_nothing_behind(tmp_path, has_certificates):
    reports = FakeReports(tmp_path, has_certificates=has_certificates)
    quote = request_quote(DIGEST, reports)
    assert quote.report_data == DIGEST + bytes(REPORT_DATA_BYTES - 32)
    assert reports.seen == [quote.report_data]
    assert quote.quote == b"signed:" + quote.report_data
    assert quote.provider == "tdx_guest"
    assert quote.certificates == (b"a chain" if has_certificates else b"")
    assert list(tmp_path.iterdir()) == []
    view = quote.view()
    assert base64.b64decode(view["quote"]) == quote.quote
    assert view["report_data"].startswith(DIGEST.hex())
    assert "nobody" in view["verified"]


def test_a_quote_that_may_be_somebody_elses_is_none(tmp_path):
    with pytest.raises(NoQuote, match="somebody else"):
        request_quote(DIGEST, FakeReports(tmp_path, intruder=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quote", [b"", b"x" * (33 << 10)])
def test_a_quote_of_an_impossible_length_is_none(tmp_path, quote):
    with pytest.raises(NoQuote, match="bytes"):
        request_quote(DIGEST, FakeReports(tmp_path, quote=quote))


def test_a_machine_without_the_kernels_directory_has_none(tmp_path):
    with pytest.raises(NoQuote, match="the kernel has no"):
        request_quote(DIGEST, ReportsDirectory(tmp_path / "absent"))


def test_what_the_platform_refuses_is_said(tmp_path):
    (tmp_path / f"hansa-{os.getpid()}").mkdir()
    with pytest.raises(NoQuote, match="gives no quote"):
        request_quote(DIGEST, ReportsDirectory(tmp_path))


def test_more_than_report_data_holds_is_a_fault_of_ours(tmp_path):
    with pytest.raises(ValueError, match="64 bytes"):
        request_quote(bytes(65), FakeReports(tmp_path))
